"use strict";
(() => {
  const content = JSON.parse(document.getElementById("content").textContent);
  const runs = content.runs;
  const kept = new Set();
  let visible = new Set(runs.keys());
  let pointedAt = null;

  // Texts of the sweep reach the page as text nodes and attributes alone, never as markup.
  const make = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) {
      if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
      else if (value === true) node.setAttribute(key, "");
      else if (value !== false && value !== null) node.setAttribute(key, value);
    }
    node.append(...children.filter((child) => child !== null));
    return node;
  };
  const byId = (id) => document.getElementById(id);
  const swatch = (colour) => {
    const node = make("span", { class: "swatch" });
    colour.split("|").forEach((shade, i) => node.style.setProperty(i ? "--dark" : "--light", shade));
    return node;
  };

  // Media: base64 in the page, made into files of the browser when they are first looked at.
  const urls = new Map();
  const mediumUrl = (number) => {
    if (!urls.has(number)) {
      const source = byId(`m${number}`);
      const bytes = Uint8Array.from(atob(source.textContent), (c) => c.charCodeAt(0));
      urls.set(number, URL.createObjectURL(new Blob([bytes], { type: source.dataset.mime })));
    }
    return urls.get(number);
  };
  const waiting = new Map();
  const comeIntoView = (node) => {
    const show = waiting.get(node);
    waiting.delete(node);
    watcher.unobserve(node);
    if (show) show();
  };
  const watcher = new IntersectionObserver(
    (entries) => entries.filter((e) => e.isIntersecting).forEach((e) => comeIntoView(e.target)),
    { rootMargin: "600px" },
  );
  const whenSeen = (node, show) => {
    waiting.set(node, show);
    watcher.observe(node);
  };

  // Charts
  const darkness = matchMedia("(prefers-color-scheme: dark)");
  let isPrinting = false;
  const isDark = () => darkness.matches && !isPrinting;
  const themed = (value, key) => {
    if (Array.isArray(value)) return value.map((item) => themed(item, key));
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, themed(v, k)]));
    }
    const isColour = typeof value === "string" && /colou?r$/.test(key || "");
    return isColour ? value.split("|").at(isDark() ? -1 : 0) : value;
  };
  const narrow = matchMedia("(max-width: 640px)");
  const layoutOf = (figure) => {
    const [ink, line] = isDark() ? ["#e8eaed", "#31373e"] : ["#1d2329", "#e4e7ea"];
    const axis = { gridcolor: line, zeroline: false, linecolor: line, fixedrange: narrow.matches };
    const layout = themed(figure.layout);
    const isSmall = figure.height < 300;
    return {
      ...layout,
      height: figure.height,
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: getComputedStyle(document.body).fontFamily, size: 12, color: ink },
      margin: { l: isSmall ? 44 : narrow.matches ? 50 : 64, r: 12, t: 12, b: 54 },
      modebar: { bgcolor: "rgba(0,0,0,0)", color: "#98a0a8", activecolor: ink },
      hoverlabel: {
        align: "left",
        bgcolor: isDark() ? "#262b31" : "#ffffff",
        bordercolor: line,
        font: { color: ink, size: 12 },
      },
      xaxis: { ...axis, ...layout.xaxis },
      yaxis: { ...axis, ...layout.yaxis },
    };
  };
  const charts = new Map();
  // Plotly lies in the page as text, so that words and pictures do not wait for it.
  const startPlotly = () => {
    if (!window.Plotly) document.head.append(make("script", {}, byId("plotly").textContent));
  };
  const draw = (node) => {
    startPlotly();
    const figure = charts.get(node)();
    const config = { displaylogo: false, responsive: true, displayModeBar: figure.height > 300 && !narrow.matches ? "hover" : false };
    config.modeBarButtonsToRemove = ["select2d", "lasso2d", "autoScale2d"];
    Plotly.react(node, themed(figure.data), layoutOf(figure), config);
    if (!node.dataset.drawn) {
      node.dataset.drawn = "yes";
      node.on("plotly_click", (event) => keep(event.points[0].customdata));
    }
  };
  const addChart = (node, figure) => {
    charts.set(node, figure);
    whenSeen(node, () => draw(node));
  };
  const redraw = () => charts.forEach((_, node) => node.dataset.drawn && draw(node));
  darkness.addEventListener("change", redraw);
  narrow.addEventListener("change", redraw);

  const emphasised = () => (kept.size ? kept : visible.size < runs.length ? visible : null);
  const planeFigure = () => {
    const chosen = emphasised();
    const data = content.plane.data.map((trace) => (trace.meta === "runs" ? fadedPoints(trace, chosen) : trace));
    return { ...content.plane, data };
  };
  const fadedPoints = (trace, chosen) => {
    const at = trace.customdata.map((run, i) => (!chosen || chosen.has(run) ? i : -1));
    const selectedpoints = chosen ? at.filter((i) => i >= 0) : null;
    return { ...trace, selectedpoints, unselected: { marker: { opacity: 0.18 } } };
  };

  // Any other figure: a line belongs to one run, each marker of a trace without lines to its own
  const faded = (figure) => {
    const chosen = emphasised();
    const data = figure.data.map((trace) => {
      if (!trace.customdata) return trace;
      if (trace.mode === "markers") return fadedPoints(trace, chosen);
      const run = trace.customdata[0];
      return { ...trace, visible: visible.has(run), opacity: chosen && !chosen.has(run) ? 0.15 : 1 };
    });
    return { ...figure, data };
  };

  // Curves over training
  const metric = byId("metric");
  const logarithmic = byId("logarithmic");
  const titleOf = (name) => (content.curves.units[name] ? `${name} (${content.curves.units[name]})` : name);
  const curveFigure = () => {
    const data = [];
    content.curves.runs.forEach((run, i) => {
      const found = run.y[metric.value];
      if (!found || !visible.has(i)) return;
      const isFaint = kept.size > 0 && !kept.has(i);
      data.push({
        type: "scatter",
        mode: found[1].length > 1 ? "lines" : "markers",
        x: run.x[found[0]],
        y: found[1],
        customdata: found[1].map(() => i),
        name: "",
        hoverinfo: "text",
        hovertext: found[1].map((y, j) => `${plotlyText(runs[i].label)}<br>step ${run.x[found[0]][j]}: ${y}`),
        line: { width: isFaint ? 1 : 1.8, color: runs[i].colour },
        opacity: isFaint ? 0.2 : 1,
        showlegend: false,
      });
    });
    const layout = {
      xaxis: { title: { text: "step" }, rangemode: "tozero" },
      yaxis: { title: { text: plotlyText(titleOf(metric.value)) }, type: logarithmic.checked ? "log" : "linear" },
      hovermode: "closest",
    };
    return { data, layout, height: 400 };
  };
  const plotlyText = (text) =>
    text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;").replaceAll("$", "&#36;");
  if (metric) {
    for (const name of content.curves.names) metric.append(make("option", { value: name }, name));
    if (content.curves.names.includes(content.curves.first)) metric.value = content.curves.first;
    metric.addEventListener("change", () => draw(byId("curve-chart")));
    logarithmic.addEventListener("change", () => draw(byId("curve-chart")));
  }

  // The key: a button for each setting, which keeps all of its runs
  const points = new Map();
  runs.forEach((run, i) => points.set(run.point, [...(points.get(run.point) || []), i]));
  const keys = points.size > 1 && points.size <= 24 ? document.querySelectorAll(".key") : [];
  for (const key of keys) {
    for (const [name, members] of points) {
      const choose = () => {
        const isOn = members.every((i) => kept.has(i));
        members.forEach((i) => (isOn ? kept.delete(i) : kept.add(i)));
        update();
      };
      const button = make("button", { type: "button", onclick: choose }, swatch(runs[members[0]].colour), name);
      button.dataset.members = JSON.stringify(members);
      key.append(button);
    }
  }

  // Chosen runs, as cards beside the plane
  const mediumOf = (kind, run) => {
    const entry = content.gallery.find((e) => e.name === kind && !e.video);
    const file = entry && entry.files.find(([i]) => i === run);
    return file && typeof file[1] === "number" ? file[1] : null;
  };
  const card = (i, note) => {
    const run = runs[i];
    const facts = make("dl");
    run.facts.forEach(([name, text]) => facts.append(make("dt", {}, name), make("dd", {}, text)));
    const pictures = ["reconstructions", "samples"].map((name) => [name, mediumOf(name, i)]);
    const remove = make("button", { type: "button", onclick: () => keep(i), "aria-label": `drop ${run.label}` }, "drop");
    return make(
      "div",
      { class: "card" },
      make("h3", {}, swatch(run.colour), run.label, kept.has(i) ? remove : null),
      note ? make("p", {}, note) : null,
      run.error ? make("p", {}, run.error) : null,
      facts,
      ...pictures
        .filter(([, number]) => number !== null)
        .map(([name, number]) => make("img", { src: mediumUrl(number), alt: `${name} of ${run.label}` })),
    );
  };
  const best = () => {
    const known = runs.map((run, i) => [run.values.neg_elbo, i]).filter(([v]) => v !== undefined);
    return known.length ? known.reduce((a, b) => (b[0] < a[0] ? b : a))[1] : null;
  };
  const showPointed = () => {
    const run = pointedAt ?? best();
    if (byId("pointed") && run !== null) {
      byId("pointed").replaceChildren(card(run, pointedAt === null ? "Has the lowest neg_elbo." : null));
    }
  };
  const showKept = () => byId("kept")?.replaceChildren(...inOrder(kept).slice(0, 24).map((i) => card(i)));
  const inOrder = (numbers) => [...numbers].sort((a, b) => a - b);
  const keep = (i) => {
    if (i === undefined) return;
    if (kept.has(i)) kept.delete(i);
    else kept.add(i);
    update();
  };

  // The table
  const table = byId("table");
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const numberOf = (row) => Number(row.dataset.run);
  const sortBy = (column, heading) => {
    const isUp = heading.getAttribute("aria-sort") !== "ascending";
    for (const th of table.tHead.rows[0].cells) if (th.ariaSort !== null) th.setAttribute("aria-sort", "none");
    heading.setAttribute("aria-sort", isUp ? "ascending" : "descending");
    const entry = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value !== undefined ? Number(cell.dataset.value) : cell.textContent;
    };
    const compare = (a, b) => {
      const [x, y] = [entry(a), entry(b)];
      if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
      if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
      const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
      return isUp ? order : -order;
    };
    body.append(...rows.sort(compare));
  };
  [...table.tHead.rows[0].cells].forEach((heading, column) => {
    const button = heading.querySelector("button");
    if (button) button.addEventListener("click", () => sortBy(column, heading));
  });
  rows.forEach((row) => row.querySelector("input").addEventListener("change", () => keep(numberOf(row))));

  const matches = (word, row) => {
    const found = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/i.exec(word);
    const value = found && runs[numberOf(row)].values[found[1]];
    if (!found || !runs.some((run) => found[1] in run.values)) return row.dataset.text.includes(word);
    const bound = Number(found[3]);
    if (value === undefined) return false;
    return { "<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound, "=": value === bound }[found[2]];
  };
  rows.forEach((row) => {
    row.dataset.text = `${row.textContent} ${row.title} ${runs[numberOf(row)].id}`.toLowerCase();
  });
  const filter = byId("filter");
  const applyFilter = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    visible = new Set(rows.filter((row) => words.every((w) => matches(w, row))).map(numberOf));
    update();
  };
  filter.addEventListener("input", applyFilter);
  byId("keep-none").addEventListener("click", () => {
    kept.clear();
    update();
  });

  // Pictures and videos
  const shown = byId("shown");
  const kinds = byId("kinds");
  const film = (url, label) =>
    make("video", { src: url, controls: true, muted: true, loop: true, playsinline: true, preload: "auto", "aria-label": label });
  const exhibit = (entry, [i, file]) => {
    const label = i < 0 ? "Side by side" : runs[i].label;
    const name = `${entry.title}: ${label}`;
    const caption = i < 0 ? label : make("button", { type: "button", title: "keep", onclick: () => keep(i) }, swatch(runs[i].colour), label);
    const figure = make("figure", { class: i < 0 ? "whole" : "" }, make("figcaption", {}, caption));
    if (i >= 0) figure.dataset.run = i;
    if (typeof file !== "number") {
      figure.append(make("a", { href: file }, "Too large for this page: open the file"));
      return figure;
    }
    const isFilm = byId(`m${file}`).dataset.mime === "video/mp4";
    const place = isFilm ? make("div") : make("img", { alt: name, decoding: "async" });
    figure.append(place);
    whenSeen(place, () => {
      if (!isFilm) place.src = mediumUrl(file);
      else {
        const video = film(mediumUrl(file), name);
        video.muted = true;
        place.replaceWith(video);
      }
    });
    return figure;
  };
  const sizes = new Set([...points.values()].map((members) => members.length));
  const replicates = sizes.size === 1 && content.sweeps.length === 1 ? [...sizes][0] : 0;
  const showKind = (entry) => {
    for (const button of kinds.children) button.setAttribute("aria-pressed", String(button.dataset.kind === `${entry.video}${entry.name}`));
    const playAll = () => {
      const videos = [...shown.querySelectorAll("video")];
      const isPlaying = videos.some((video) => !video.paused);
      videos.forEach((video) => {
        video.currentTime = 0;
        if (isPlaying) video.pause();
        else video.play();
      });
    };
    const start = make("button", { type: "button", class: "plain", onclick: playAll }, "Play or stop all together");
    const whole = entry.files.filter(([i]) => i < 0);
    const single = entry.files.filter(([i]) => i >= 0);
    const gallery = (files) => {
      const node = make("div", { class: "gallery" }, ...files.map((f) => exhibit(entry, f)));
      if (replicates > 1 && replicates < 4) node.style.setProperty("--columns", replicates);
      return node;
    };
    const parts = [];
    const ofRuns = () => {
      if (content.sweeps.length === 1) return gallery(single);
      const columns = content.sweeps.map((name, s) =>
        make("div", {}, make("h3", {}, name), gallery(single.filter(([i]) => runs[i].sweep === s))));
      return make("div", { class: "sweeps" }, ...columns);
    };
    if (whole.length) {
      const each = make("details", {}, make("summary", {}, `Each run's own (${single.length})`));
      each.addEventListener("toggle", () => { each.append(make("p", {}, start), ofRuns()); update(); }, { once: true });
      parts.push(gallery(whole), each);
    } else parts.push(...(entry.video && single.length > 1 ? [make("p", {}, start)] : []), ofRuns());
    shown.replaceChildren(...parts);
    update();
  };

  function update() {
    rows.forEach((row) => {
      const i = numberOf(row);
      row.hidden = !visible.has(i);
      row.classList.toggle("kept", kept.has(i));
      row.querySelector("input").checked = kept.has(i);
    });
    byId("matches").textContent = visible.size < runs.length ? `${visible.size} of ${runs.length} runs` : "";
    byId("keep-none").hidden = kept.size === 0;
    document.querySelectorAll("figure[data-run]").forEach((figure) => {
      const i = Number(figure.dataset.run);
      figure.hidden = !visible.has(i);
      figure.classList.toggle("kept", kept.has(i));
    });
    document.querySelectorAll(".key button").forEach((button) => {
      const members = JSON.parse(button.dataset.members);
      button.setAttribute("aria-pressed", String(members.every((i) => kept.has(i))));
    });
    showKept();
    redraw();
  }

  const SHAPES = {
    circle: "M2 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0",
    diamond: "M7-6L12 0L7 6L2 0Z",
    x: "M3-4L5.5-1.5L7-3L11-4L8.5 0L11 4L7 3L3 4L5.5 0Z",
    star: "M7-7L9-2H14L10 1.5L11.5 7L7 3.5L2.5 7L4 1.5L0-2H5Z",
    line: "M-3 0H17",
    dash: "M-3 0H5M9 0H17",
    error: "M-1 0H15M7-6V6M-1-2.5V2.5M15-2.5V2.5M4.5-6H9.5M4.5 6H9.5",
  };
  const showLegend = () => {
    const items = content.plane.legend.map(([symbol, colour, text]) => {
      const item = make("li");
      const name = symbol.replace("-open", "");
      const isFilled = symbol === name && ["circle", "diamond", "x"].includes(name);
      const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
      svg.setAttribute("viewBox", "-4 -8 22 16");
      svg.setAttribute("class", isFilled ? "filled" : "");
      const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
      path.setAttribute("d", SHAPES[name]);
      svg.append(path);
      colour.split("|").forEach((shade, i) => svg.style.setProperty(i ? "--dark" : "--light", shade));
      item.append(svg, text);
      return item;
    });
    byId("legend").replaceChildren(...items);
  };
  const showPlane = () => {
    const node = byId("plane-chart");
    charts.set(node, planeFigure);
    draw(node);
    performance.mark("plane");
    showLegend();
    node.on("plotly_hover", (event) => {
      const run = event.points[0].customdata;
      if (run === undefined || run === pointedAt) return;
      pointedAt = run;
      showPointed();
    });
    rows.forEach((row) =>
      row.addEventListener("mouseenter", () => {
        const traces = node.data || [];
        for (const [curveNumber, trace] of traces.entries()) {
          const pointNumber = trace.meta === "runs" ? trace.customdata.indexOf(numberOf(row)) : -1;
          if (pointNumber >= 0) Plotly.Fx.hover(node, [{ curveNumber, pointNumber }]);
        }
      }));
  };
  for (const entry of content.gallery) {
    const button = make("button", { type: "button", onclick: () => showKind(entry) }, entry.video ? `▶ ${entry.title}` : entry.title);
    button.dataset.kind = `${entry.video}${entry.name}`;
    kinds.append(button);
  }
  if (content.gallery.length) showKind(content.gallery[0]);
  const diagnostics = document.querySelector(".charts");
  const places = content.diagnostics.map((figure) => {
    const node = make("div", { class: "chart" });
    node.style.minHeight = `${figure.height}px`;
    diagnostics.append(make("div", { class: figure.wide ? "wide" : "" }, make("h3", {}, figure.title), node));
    return node;
  });
  showPointed();
  update();
  const showCharts = () => {
    if (content.plane) showPlane();
    if (content.units) addChart(byId("units-chart"), () => faded(content.units));
    if (metric) addChart(byId("curve-chart"), curveFigure);
    places.forEach((node, i) => addChart(node, () => faded(content.diagnostics[i])));
  };
  addEventListener("load", () => setTimeout(showCharts));

  const prepareToPrint = () => {
    isPrinting = true;
    [...waiting.keys()].forEach(comeIntoView);
    redraw();
  };
  addEventListener("beforeprint", prepareToPrint);
  addEventListener("afterprint", () => {
    isPrinting = false;
    redraw();
  });
})();
