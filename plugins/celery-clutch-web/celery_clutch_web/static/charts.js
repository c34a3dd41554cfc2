"use strict";
window.charts = () => {};
