{# The script of the map: one closure, of the parts below. #}
"use strict";
(async () => {
{% include "data.js" %}
{% include "view.js" %}
{% include "draw.js" %}
{% include "select.js" %}
{% include "panel.js" %}
{% include "input.js" %}
})();
