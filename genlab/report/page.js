"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const json = (node) => JSON.parse(node.textContent);

  // Media: base64 in the page, made into files of the browser when they are first looked at.
  const urls = new Map();
  const urlOf = (number) => {
    if (!urls.has(number)) {
      const source = document.getElementById(`m${number}`);
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
  const fill = (root) => {
    for (const node of all("[data-medium]", root)) {
      whenSeen(node, () => { node.src = urlOf(node.dataset.medium); });
    }
  };
  addEventListener("beforeprint", () => [...waiting.keys()].forEach(comeIntoView));

  // Charts: the library lies in the page as text, so that words and pictures do not wait for it.
  const look = json(document.getElementById("look"));
  const embed = (chart, spec) => {
    if (!window.vegaEmbed) {
      const script = document.createElement("script");
      script.textContent = `(() => {${document.getElementById("vega").textContent}})();`;
      document.head.append(script);
    }
    const options = { ast: true, renderer: "svg", actions: false, config: look, tooltip: { theme: "custom" } };
    return vegaEmbed(chart.querySelector(".vega"), spec, options);
  };

  // A picture as large as the window
  const large = document.getElementById("large");
  let enlarged = null;
  const enlarge = (button) => {
    enlarged = button;
    const [from, to] = [button.querySelector("img"), large.querySelector("img")];
    to.src = urlOf(from.dataset.medium);
    to.alt = large.querySelector("figcaption").textContent = from.alt;
    if (!large.open) large.showModal();
  };
  const step = (by) => {
    const places = all(".enlarge", enlarged.closest(".gallery, .kept, .pointed")).filter((b) => b.offsetParent);
    enlarge(places[(places.indexOf(enlarged) + by + places.length) % places.length]);
  };
  large.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft" || event.key === "ArrowRight") step(event.key === "ArrowLeft" ? -1 : 1);
  });
  large.addEventListener("click", (event) => {
    const by = event.target.dataset?.step;
    if (by && Number(by)) step(Number(by));
    else if (by || event.target === large || event.target.tagName === "IMG") large.close();
  });
  document.addEventListener("click", async (event) => {
    const button = event.target.closest?.(".enlarge, .copy");
    if (button?.matches(".enlarge")) enlarge(button);
    if (button?.matches(".copy")) {
      const text = button.dataset.text;
      try {
        await navigator.clipboard.writeText(text);
      } catch {
        const field = document.createElement("textarea");
        field.value = text;
        document.body.append(field);
        field.select();
        document.execCommand("copy");
        field.remove();
      }
      button.classList.add("copied");
      setTimeout(() => button.classList.remove("copied"), 1500);
    }
  });

  const setUp = (part) => {
    const kept = new Set();
    const one = (selector) => part.querySelector(selector);
    const table = one("table.runs");
    const rows = all("tbody tr", table);
    const numberOf = (node) => Number(node.dataset.run);
    const numbers = rows.map(numberOf);
    const rowOf = new Map(rows.map((row) => [numberOf(row), row]));
    let visible = new Set(numbers);
    const views = new Map();

    // How visible each run is in the charts, by its number
    const emphasis = () => {
      if (!kept.size && visible.size === numbers.length) return null;
      return numbers.map((_, i) => (!visible.has(i) ? 0 : !kept.size || kept.has(i) ? 1 : 0.15));
    };
    const emphasise = ({ spec, view }) => {
      if (spec.params?.some(({ name }) => name === "emphasis")) view.signal("emphasis", emphasis()).run();
    };
    const draw = async (chart, spec) => {
      views.get(chart)?.finalize();
      views.delete(chart);
      const result = await embed(chart, spec);
      views.set(chart, result);
      result.view.addEventListener("click", (_, item) => keep(item?.datum?.run));
      result.view.addEventListener("pointerover", (_, item) => point(item?.datum?.run));
      emphasise(result);
      performance.mark(chart.closest("section").id.replace(/-\d+$/, ""));
    };
    for (const chart of all(".chart:not([data-dynamic])", part)) {
      whenSeen(chart, () => draw(chart, json(chart.querySelector("script"))));
    }

    // Curves over training
    const curveChart = one(".chart[data-dynamic]");
    if (curveChart) {
      const runs = json(one(".curve-data"));
      const spec = json(curveChart.querySelector("script"));
      const [metric, against, smoothing, logarithmic] = [".metric", ".against", ".smoothing", ".logarithmic"].map(one);
      const titled = (name, node) => (node.dataset.unit ? `${name} (${node.dataset.unit})` : name);
      const smoothed = (values, share) => {
        let [sum, weight] = [0, 0];
        return values.map((value) => {
          [sum, weight] = [share * sum + (1 - share) * value, share * weight + 1 - share];
          return sum / weight;
        });
      };
      const drawCurves = () => {
        const table = runs.flatMap((run, i) => {
          const found = run.y[metric.value];
          const at = found && run[against.value] && run[against.value][found[0]];
          if (!at) return [];
          return smoothed(found[1], Number(smoothing.value))
            .map((value, j) => ({ run: i, label: run.label, name: run.name, at: at[j], value }))
            .filter((row) => !logarithmic.checked || row.value > 0);
        });
        const changed = structuredClone(spec);
        changed.datasets = { curves: table };
        for (const layer of changed.layer) {
          layer.encoding.y.scale = logarithmic.checked ? { type: "log" } : { zero: false };
          layer.encoding.y.axis.title = titled(metric.value, metric.selectedOptions[0]);
          layer.encoding.x.axis.title = titled(against.value, against.selectedOptions[0]);
        }
        return draw(curveChart, changed);
      };
      whenSeen(curveChart, drawCurves);
      one(".curves-of").addEventListener("input", drawCurves);
    }

    // Chosen runs, as cards beside the plane
    const [pointed, cards] = [one(".pointed"), one(".kept")];
    const templates = new Map(all("template.card-of", part).map((t) => [numberOf(t), t]));
    const card = (i) => {
      const node = templates.get(i).content.cloneNode(true);
      const drop = node.querySelector(".drop");
      if (kept.has(i)) drop.addEventListener("click", () => keep(i));
      else drop.remove();
      return node;
    };
    const show = (place, chosen) => {
      place.replaceChildren(...chosen.filter((i) => templates.has(i)).map(card));
      fill(place);
    };
    const point = (i) => {
      if (pointed && i !== undefined && i !== Number(pointed.dataset.run)) {
        pointed.dataset.run = i;
        show(pointed, [i]);
      }
    };
    const keep = (i) => {
      if (i === undefined) return;
      if (!kept.delete(i)) kept.add(i);
      update();
    };

    // The table
    const headings = all("thead th", table);
    const sortBy = (column) => {
      const isUp = headings[column].getAttribute("aria-sort") !== "ascending";
      headings.forEach((th) => th.hasAttribute("aria-sort") && th.setAttribute("aria-sort", "none"));
      headings[column].setAttribute("aria-sort", isUp ? "ascending" : "descending");
      const entry = ({ cells }) => {
        const { value } = cells[column].dataset;
        return value === undefined ? cells[column].textContent : Number(value);
      };
      const compare = (a, b) => {
        const [x, y] = [entry(a), entry(b)];
        if ((x === "") !== (y === "")) return x === "" ? 1 : -1;
        if (typeof x !== typeof y) return typeof x === "number" ? -1 : 1;
        const order = typeof x === "number" ? x - y : x.localeCompare(y, "en", { numeric: true });
        return isUp ? order : -order;
      };
      table.tBodies[0].append(...[...rows].sort(compare));
    };
    headings.forEach((th, i) => th.querySelector("button")?.addEventListener("click", () => sortBy(i)));
    const columns = new Map(headings.map((th, i) => [th.textContent.trim().replaceAll(" ", "_"), i]));
    const matches = (word, row) => {
      const found = /^([^<>=]+)(<=|>=|<|>|=)(-?[\d.]+(?:e-?\d+)?)$/i.exec(word);
      if (!found || !columns.has(found[1])) return row.dataset.words.includes(word);
      const { value } = row.cells[columns.get(found[1])].dataset;
      if (value === undefined) return false;
      const [a, b] = [Number(value), Number(found[3])];
      return { "<": a < b, ">": a > b, "<=": a <= b, ">=": a >= b, "=": a === b }[found[2]];
    };
    for (const row of rows) {
      row.dataset.words = `${row.textContent} ${row.title} ${row.dataset.id}`.toLowerCase();
      row.querySelector("input").addEventListener("change", () => keep(numberOf(row)));
      row.addEventListener("mouseenter", () => point(numberOf(row)));
    }
    const filter = one(".filter");
    filter.addEventListener("input", () => {
      const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
      visible = new Set(rows.filter((row) => words.every((w) => matches(w, row))).map(numberOf));
      update();
    });
    one(".keep-none").addEventListener("click", () => {
      kept.clear();
      update();
    });
    const keys = all(".key button", part);
    const membersOf = (button) => JSON.parse(button.dataset.members);
    for (const button of keys) {
      button.addEventListener("click", () => {
        const members = membersOf(button);
        const isOn = members.every((i) => kept.has(i));
        members.forEach((i) => (isOn ? kept.delete(i) : kept.add(i)));
        update();
      });
    }

    // Pictures and videos
    const [shown, kinds] = [one(".shown"), all(".kinds button", part)];
    const showKind = (button) => {
      kinds.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      shown.replaceChildren(one(`template.kind[data-kind="${button.dataset.kind}"]`).content.cloneNode(true));
      for (const figure of all("[data-run]", shown)) {
        figure.querySelector(".keep-run").addEventListener("click", () => keep(numberOf(figure)));
      }
      for (const playAll of all(".play-all", shown)) {
        playAll.addEventListener("click", () => {
          const videos = all("video[src]", shown);
          const isPlaying = videos.some((video) => !video.paused);
          for (const video of videos) {
            video.currentTime = 0;
            if (isPlaying) video.pause();
            else video.play();
          }
        });
      }
      fill(shown);
      update();
    };
    kinds.forEach((button) => button.addEventListener("click", () => showKind(button)));

    const update = () => {
      for (const [i, row] of rowOf) {
        row.hidden = !visible.has(i);
        row.classList.toggle("kept", kept.has(i));
        row.querySelector("input").checked = kept.has(i);
      }
      one(".matches").textContent = visible.size < rows.length ? `${visible.size} of ${rows.length} runs` : "";
      one(".keep-none").hidden = kept.size === 0;
      for (const figure of shown ? all("[data-run]", shown) : []) {
        figure.hidden = !visible.has(numberOf(figure));
        figure.classList.toggle("kept", kept.has(numberOf(figure)));
      }
      keys.forEach((button) => button.setAttribute("aria-pressed", String(membersOf(button).every((i) => kept.has(i)))));
      if (cards) show(cards, [...kept].sort((a, b) => a - b).slice(0, 24));
      views.forEach(emphasise);
    };
    if (kinds.length) showKind(kinds[0]);
    else update();
    if (pointed) {
      const column = columns.get("neg_elbo");
      const value = (row) => Number(row.cells[column]?.dataset.value ?? Infinity);
      const best = rows.reduce((a, b) => (value(b) < value(a) ? b : a));
      point(numberOf(best));
      const note = document.createElement("p");
      note.textContent = "Has the lowest neg_elbo.";
      if (Number.isFinite(value(best))) pointed.querySelector(".name")?.after(note);
    }
  };
  addEventListener("load", () => setTimeout(() => all(".part").forEach(setUp)));
})();
