"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const make = (tag, text, className) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
};
for (const element of document.querySelectorAll(".brief, .highlight, .copy, .choose")) element.hidden = false;

// Comparisons that a link leads to are opened; printed are all.
const comparisons = [...document.querySelectorAll("details.comparison")];
const follow = () => {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target && target.matches("details.comparison")) { target.open = true; target.scrollIntoView(); target.querySelector("summary").focus({ preventScroll: true }); }
};
addEventListener("hashchange", follow);
follow();
for (const link of document.querySelectorAll("nav a")) link.addEventListener("click", () => { if (location.hash === link.hash) follow(); });
const fold = document.querySelector(".fold");
fold.hidden = comparisons.length < 2;
fold.addEventListener("click", (event) => {
  const wanted = event.target.dataset.fold;
  if (wanted) for (const one of comparisons) one.open = wanted === "open";
});
let closed = [];
addEventListener("beforeprint", () => { closed = [...document.querySelectorAll("details.comparison:not([open])")]; for (const one of closed) one.open = true; });
addEventListener("afterprint", () => { for (const one of closed) one.open = false; });

const facts = (pairs) => {
  const list = make("dl");
  for (const [name, value] of pairs) {
    const line = make("div");
    line.append(make("dt", name), make("dd", value));
    list.append(line);
  }
  return list;
};

for (const figure of document.querySelectorAll("figure[data-c]")) {
  const about = data[figure.dataset.c];
  const brief = figure.querySelector(".brief");
  const behind = figure.querySelector(".behind");
  const hint = brief.textContent;
  let asked = null;

  const say = (i) => {
    brief.textContent = i === null ? hint : about.points[i].name;
    brief.classList.toggle("told", i !== null);
  };
  const close = () => {
    behind.hidden = true;
    for (const one of figure.querySelectorAll(".point.on")) one.classList.remove("on");
    if (asked) asked.focus();
    asked = null;
  };
  const show = (point) => {
    const one = about.points[point.dataset.i];
    const button = make("button", "Close");
    button.type = "button";
    button.addEventListener("click", close);
    behind.replaceChildren(button, make("h4", one.title), facts(one.facts), facts(about.settings), facts(about.sources[one.source]));
    behind.hidden = false;
    for (const other of figure.querySelectorAll(".point.on")) other.classList.remove("on");
    for (const same of figure.querySelectorAll(`.point[data-i="${point.dataset.i}"]`)) same.classList.add("on");
    asked = point;
    behind.focus({ preventScroll: true });
    behind.scrollIntoView({ block: "nearest" });
  };
  behind.addEventListener("keydown", (event) => { if (event.key === "Escape") close(); });

  for (const svg of figure.querySelectorAll("svg.plot")) {
    const place = (point) => { const ring = point.querySelector(".ring"); return [Number(ring.getAttribute("cx")), Number(ring.getAttribute("cy"))]; };
    const points = [...svg.querySelectorAll(".point")].map((element) => ({ element, at: place(element) }));
    points.sort((a, b) => a.at[0] - b.at[0] || a.at[1] - b.at[1]);
    if (!points.length) continue;
    points[0].element.setAttribute("tabindex", "0");
    const go = (i) => {
      for (const { element } of points) element.setAttribute("tabindex", "-1");
      points[i].element.setAttribute("tabindex", "0");
      points[i].element.focus();
    };
    svg.addEventListener("keydown", (event) => {
      const i = points.findIndex(({ element }) => element === document.activeElement);
      if (i < 0) return;
      const last = points.length - 1;
      const to = { ArrowRight: Math.min(i + 1, last), ArrowDown: Math.min(i + 1, last), ArrowLeft: Math.max(i - 1, 0), ArrowUp: Math.max(i - 1, 0), Home: 0, End: last }[event.key];
      if (to !== undefined) go(to);
      else if (event.key === "Enter" || event.key === " ") show(points[i].element);
      else if (event.key === "Escape") close();
      else return;
      event.preventDefault();
    });
    svg.addEventListener("focusin", (event) => { const point = event.target.closest(".point"); if (point) say(point.dataset.i); });
    svg.addEventListener("focusout", () => say(null));
    // The nearest mark counts, as marks are small and close to each other.
    const nearest = (event) => {
      const matrix = svg.getScreenCTM();
      const [x, y] = [(event.clientX - matrix.e) / matrix.a, (event.clientY - matrix.f) / matrix.d];
      let best = null, least = 14;
      for (const point of points) {
        const far = Math.hypot(point.at[0] - x, point.at[1] - y);
        if (far < least && !point.element.classList.contains("dim")) [best, least] = [point.element, far];
      }
      return best;
    };
    let near = null;
    const approach = (point) => {
      if (point === near) return;
      if (near) near.classList.remove("near");
      near = point;
      if (near) near.classList.add("near");
      svg.style.cursor = near ? "pointer" : "";
      say(near ? near.dataset.i : null);
    };
    svg.addEventListener("pointermove", (event) => approach(nearest(event)));
    svg.addEventListener("pointerleave", () => approach(null));
    svg.addEventListener("click", (event) => { const point = nearest(event); if (point) { say(point.dataset.i); show(point); } });
  }

  figure.querySelector(".highlight select").addEventListener("change", (event) => {
    const chosen = event.target.value;
    for (const line of figure.querySelectorAll(".line")) line.classList.toggle("dim", chosen !== "" && line.dataset.m !== chosen);
    for (const point of figure.querySelectorAll(".point")) point.classList.toggle("dim", chosen !== "" && String(about.points[point.dataset.i].method) !== chosen);
  });
}

for (const bar of document.querySelectorAll(".copy")) {
  const said = bar.querySelector("[role=status]");
  bar.addEventListener("click", async (event) => {
    const kind = event.target.dataset.copy;
    if (!kind) return;
    const text = data[bar.dataset.c].copies[kind];
    bar.querySelector("textarea")?.remove();
    try {
      await navigator.clipboard.writeText(text);
      said.textContent = `${kind} copied`;
    } catch {
      const area = make("textarea", text);
      area.readOnly = true;
      area.setAttribute("aria-label", `${kind} of the table`);
      bar.append(area);
      area.select();
      said.textContent = `The browser does not let a page copy; press Ctrl+C to copy the ${kind}`;
    }
  });
}

const LEVELS = 20;
for (const maps of document.querySelectorAll(".maps")) {
  const heat = data[maps.dataset.c].heat;
  for (const side of maps.children) {
    const select = side.querySelector("select");
    select.addEventListener("change", () => {
      const map = heat[select.value];
      const heads = Math.max(1, ...map.map((layer) => (layer ? layer.length : 1)));
      const table = make("table", undefined, "heat");
      table.createCaption().textContent = select.selectedOptions[0].textContent;
      const top = table.createTHead().insertRow();
      for (const text of ["layer", ...Array(heads).keys()]) { const cell = make("th", text); cell.scope = "col"; top.append(cell); }
      const body = table.createTBody();
      map.forEach((layer, number) => {
        const row = body.insertRow();
        const name = make("th", number);
        name.scope = "row";
        row.append(name);
        if (layer === null) {
          const cell = make("td", "does not choose", "none");
          cell.colSpan = heads;
          row.append(cell);
        } else {
          for (const share of layer) row.append(make("td", share.toFixed(2), `h${Math.round(LEVELS * Math.min(Math.max(share, 0), 1))}`));
        }
      });
      side.querySelector("table").replaceWith(table);
    });
  }
}
