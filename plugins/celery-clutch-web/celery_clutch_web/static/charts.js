"use strict";
// Draws every figure with data-chart; again when its numbers, its width or the theme change.
(() => {
  const drawn = new Map(); // by the id of the figure: the figure and its plot

  // light-dark() as the browser has resolved it, as a canvas knows nothing of it.
  function resolved(name) {
    const probe = document.createElement("i");
    probe.style.color = `var(--${name})`;
    document.body.append(probe);
    const found = getComputedStyle(probe).color;
    probe.remove();
    return found;
  }

  function seconds(value) {
    if (value == null) return "";
    if (value < 0.1) return `${Math.round(value * 1000)} ms`;
    if (value < 60) return `${+value.toFixed(value < 10 ? 1 : 0)} s`;
    if (value < 3600) return `${+(value / 60).toFixed(1)} min`;
    return `${+(value / 3600).toFixed(1)} h`;
  }

  function numbers(figure) {
    const lines = JSON.parse(figure.dataset.lines);
    const names = [...figure.querySelectorAll("[data-line]")].map(each => each.dataset.line);
    const times = JSON.parse(figure.dataset.times), rows = names.map(name => [...lines[name]]);
    if (figure.dataset.chart === "number") { // the last bucket has a width, too
      times.push(2 * times.at(-1) - times.at(-2));
      for (const row of rows) row.push(row.at(-1));
    }
    return [times, ...rows];
  }

  function draw(figure) {
    const place = figure.querySelector(".plot");
    const marks = [...figure.querySelectorAll("[data-line]")];
    const unit = figure.dataset.chart === "seconds" ? seconds : value => value == null ? "" : value.toLocaleString("en");
    const muted = resolved("muted"), line = resolved("line");
    const axis = { stroke: muted, font: "11px system-ui, sans-serif", grid: { stroke: line, width: 1 }, ticks: { show: false } };
    const options = {
      width: place.clientWidth,
      height: 170,
      padding: [10, 8, 0, 0],
      legend: { show: false },
      cursor: { drag: { x: false, y: false }, points: { size: 6 }, y: false },
      scales: { y: { range: (plot, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
      axes: [
        { ...axis, grid: { show: false }, space: 70, size: 26, values: (plot, ticks) => ticks.map(each => new Date(each * 1000).toTimeString().slice(0, 5)) },
        { ...axis, size: 48, space: 30, incrs: figure.dataset.chart === "seconds" ? undefined : [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 2e4, 5e4, 1e5, 1e6], values: (plot, ticks) => ticks.map(unit) },
      ],
      series: [{}, ...marks.map(mark => ({
        label: mark.dataset.line, stroke: resolved(mark.dataset.colour), width: 1.75,
        // A number is of the whole bucket that begins there.
        ...(figure.dataset.chart === "seconds"
          ? { points: { show: true, size: 4 }, spanGaps: true }
          : { points: { show: false }, paths: uPlot.paths.stepped({ align: 1 }), fill: resolved(mark.dataset.colour).replace("rgb(", "rgba(").replace(")", ", 0.08)") }),
      }))],
      hooks: { setCursor: [plot => marks.forEach((mark, index) => {
        const at = plot.cursor.idx;
        mark.querySelector("b").textContent = at == null ? "" : unit(plot.data[index + 1][at]);
      })] },
    };
    place.replaceChildren();
    return new uPlot(options, numbers(figure), place);
  }

  window.charts = root => {
    for (const figure of root.querySelectorAll("[data-chart]")) {
      const old = drawn.get(figure.id);
      old?.plot.destroy();
      drawn.set(figure.id, { figure, plot: draw(figure) });
    }
  };

  let waiting = 0;
  addEventListener("resize", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => window.charts(document), 150);
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.charts(document));
})();
