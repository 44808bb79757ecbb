{# The map itself, for the page of `simsearch map` and for the service's. #}
// source: what is drawn, see data.js. host: what is around it: `open`, called with an item that is clicked, if that does
// not open its card; `changed`, called with where one looks and what is selected, see state.js.
function createMap(source, host = {}) {
{% include "map/data.js" %}
{% include "map/view.js" %}
{% include "map/draw.js" %}
{% include "map/select.js" %}
{% include "map/panel.js" %}
{% include "map/state.js" %}
{% include "map/input.js" %}
}
