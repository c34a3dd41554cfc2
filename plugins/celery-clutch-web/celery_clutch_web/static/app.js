"use strict";
// Live updates, times, the drawing, and the keyboard. No page needs it to be read.
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];

  // --- live -------------------------------------------------------------------------------------

  const shown = new Map(); // the HTML that the server sent last, by section

  // In streams times are empty, as they pass by themselves.
  function timeless(section) {
    const copy = section.cloneNode(true);
    for (const each of all("time", copy)) each.textContent = "";
    return copy.outerHTML;
  }

  function parsed(html) {
    const made = document.createElement("template");
    made.innerHTML = html;
    return made.content;
  }

  // Put what has changed in the place of what is there, and leave alone what people have done to it.
  function update(html) {
    for (const section of parsed(html).querySelectorAll("[data-live]")) {
      const text = timeless(section);
      const old = document.getElementById(section.id);
      if (!old || shown.get(section.id) === text) continue;
      shown.set(section.id, text);
      const focus = old.contains(document.activeElement) ? document.activeElement.id : "";
      for (const each of all("details[open]", old)) {
        const same = section.querySelector(`#${CSS.escape(each.id)}`);
        if (same) same.open = true;
      }
      for (const each of all("input:checked", old)) {
        const same = all("input", section).find(one => one.value === each.value && one.name === each.name);
        if (same) same.checked = true;
      }
      old.replaceWith(section);
      if (focus) document.getElementById(focus)?.focus({ preventScroll: true });
      htmx.process(section);
      ready(section);
    }
    tick();
  }

  function say(state, text) {
    const place = document.getElementById("live");
    place.dataset.state = state;
    place.textContent = text;
  }

  let source = null;

  function listen() {
    const address = document.getElementById("main").dataset.events;
    if (!address || source) return;
    source = new EventSource(address);
    source.addEventListener("open", () => say("on", "live"));
    source.addEventListener("error", () => say("off", source?.readyState === EventSource.CLOSED ? "not live" : "reconnecting"));
    source.addEventListener("trouble", event => say("off", JSON.parse(event.data).slice(0, 80)));
    source.addEventListener("look", event => update(JSON.parse(event.data)));
    source.addEventListener("gone", () => { source.close(); say("off", "this run is gone"); });
  }

  function hush() {
    source?.close();
    source = null;
  }

  // Browsers open six connections to a host, and a page that nobody sees has no use for one.
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") return listen();
    hush();
    say("off", "paused");
  });
  addEventListener("pagehide", hush);
  addEventListener("pageshow", event => { if (event.persisted) location.reload(); });

  // --- times ------------------------------------------------------------------------------------

  let ahead = 0; // of the server's clock, in seconds

  function duration(seconds) {
    if (seconds < 0.0995) return `${Math.round(seconds * 1000)} ms`;
    if (seconds < 59.5) return seconds < 9.95 ? `${seconds.toFixed(1)} s` : `${Math.round(seconds)} s`;
    const parts = [];
    for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60], ["s", 1]]) {
      const amount = Math.floor(Math.round(seconds) / size);
      seconds = Math.round(seconds) % size;
      if (amount || parts.length) parts.push([amount, unit]);
    }
    return parts.slice(0, 2).filter(part => part[0]).map(part => part.join(" ")).join(" ");
  }

  function tick() {
    const now = Date.now() / 1000 + ahead;
    for (const each of all("time[data-ago]")) each.textContent = `${duration(Math.max(now - each.dataset.ago, 0))} ago`;
    for (const each of all("time[data-since]")) each.textContent = duration(Math.max(now - each.dataset.since, 0));
    for (const each of all("time[data-countdown]")) {
      const left = each.dataset.countdown - now;
      each.textContent = left <= 0 ? "due" : `in ${left < 59 ? `${Math.ceil(left)} s` : duration(left)}`;
    }
  }

  // --- the drawing ------------------------------------------------------------------------------

  const place = { x: 0, y: 0, scale: 1, moved: false };

  function put(view) {
    view.firstElementChild.style.transform = `translate(${place.x}px,${place.y}px) scale(${place.scale})`;
  }

  function fit(view) {
    const drawing = view.firstElementChild;
    const width = (view.clientWidth - 24) / drawing.offsetWidth;
    place.scale = Math.min(1, Math.max(width, 0.5));
    place.x = place.y = 0;
    place.moved = false;
    put(view);
  }

  function zoom(view, by, x, y) {
    const next = Math.min(Math.max(place.scale * by, 0.05), 4);
    place.x = x - (x - place.x) * next / place.scale;
    place.y = y - (y - place.y) * next / place.scale;
    place.scale = next;
    place.moved = true;
    put(view);
  }

  function pan(view) {
    if (place.moved) put(view); else fit(view);
    let held = null, far = false;
    view.addEventListener("wheel", event => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls
      event.preventDefault();
      const edge = view.getBoundingClientRect();
      zoom(view, Math.exp(-event.deltaY / 300), event.clientX - edge.left, event.clientY - edge.top);
    }, { passive: false });
    view.addEventListener("pointerdown", event => {
      held = [event.clientX - place.x, event.clientY - place.y, event.clientX, event.clientY];
      far = false;
    });
    view.addEventListener("pointermove", event => {
      if (!held) return;
      if (!far && Math.hypot(event.clientX - held[2], event.clientY - held[3]) < 5) return;
      if (!far) view.setPointerCapture(event.pointerId);
      far = place.moved = true;
      place.x = event.clientX - held[0];
      place.y = event.clientY - held[1];
      put(view);
    });
    for (const name of ["pointerup", "pointercancel"]) view.addEventListener(name, () => { held = null; });
    view.addEventListener("click", event => { if (far) { event.stopPropagation(); event.preventDefault(); } }, true);
    view.addEventListener("keydown", event => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = { ArrowLeft: [60, 0], ArrowRight: [-60, 0], ArrowUp: [0, 60], ArrowDown: [0, -60] }[event.key];
      const middle = [view.clientWidth / 2, view.clientHeight / 2];
      if (step) { place.x += step[0]; place.y += step[1]; place.moved = true; put(view); }
      else if (event.key === "+" || event.key === "=") zoom(view, 1.25, ...middle);
      else if (event.key === "-") zoom(view, 0.8, ...middle);
      else if (event.key === "0") fit(view);
      else return;
      event.preventDefault();
    });
  }

  // --- choosing runs ------------------------------------------------------------------------------

  function chosen() {
    const form = document.querySelector("[data-choose]");
    if (!form) return;
    const count = all("input[name=id]:checked", form).length;
    const note = form.querySelector("[data-chosen]");
    if (note) {
      note.dataset.none ??= note.textContent;
      note.textContent = count ? `${count} chosen` : note.dataset.none;
    }
    for (const button of all("[data-wants-choice]", form)) button.disabled = !count;
  }

  // --- all together -------------------------------------------------------------------------------

  function ready(root) {
    for (const view of all("[data-pan]", root)) pan(view);
    window.charts?.(root);
    chosen();
  }

  function choose(step) {
    const links = all("[data-row]");
    if (!links.length) return;
    const at = links.indexOf(document.activeElement);
    const next = links[at < 0 ? (step > 0 ? 0 : links.length - 1) : Math.min(Math.max(at + step, 0), links.length - 1)];
    next.focus();
    next.closest("tr")?.scrollIntoView({ block: "nearest" });
  }

  function toggle() {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    try { localStorage.setItem("clutch-theme", root.dataset.theme); } catch { /* for this page only */ }
    window.charts?.(document);
  }

  document.addEventListener("click", event => {
    if (event.target.closest("#theme")) toggle();
    const by = event.target.closest("[data-zoom]")?.dataset.zoom;
    if (by) {
      const view = document.querySelector("[data-pan]");
      if (+by) zoom(view, +by, view.clientWidth / 2, view.clientHeight / 2); else fit(view);
    }
    if (event.target.closest("[data-close]")) document.getElementById("job").replaceChildren();
  });
  document.addEventListener("change", event => {
    if (event.target.matches("[data-all]"))
      for (const each of all("input[name=id]")) each.checked = event.target.checked;
    chosen();
  });
  document.addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("input, select, textarea")) return;
    if (event.key === "/") document.querySelector("[data-key='/']")?.focus();
    else if (event.key === "j") choose(1);
    else if (event.key === "k") choose(-1);
    else if (event.key === "t") toggle();
    else if (event.key === "Escape") document.getElementById("job")?.replaceChildren();
    else return;
    event.preventDefault();
  });
  document.addEventListener("htmx:afterSwap", event => {
    ready(event.target);
    if (event.target.id === "job") event.target.scrollIntoView({ block: "nearest" });
  });
  // What is refused is shown where the answer would have been.
  document.addEventListener("htmx:responseError", event => {
    const note = document.createElement("p");
    note.className = "notice bad";
    note.textContent = parsed(event.detail.xhr.responseText).querySelector(".notice")?.textContent || event.detail.xhr.responseText.slice(0, 300);
    event.detail.target?.replaceChildren(note);
  });

  for (const each of all("[data-live]")) shown.set(each.id, timeless(each));
  ahead = document.getElementById("main").dataset.now - Date.now() / 1000;
  ready(document);
  listen();
  setInterval(tick, 1000);
})();
