{# The script of the page: the embedded data, and the map that it is drawn with. #}
"use strict";
{% include "map/core.js" %}
(async () => {
{% include "map/embedded.js" %}
})();
