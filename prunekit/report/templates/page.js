"use strict";
/* The figures of a chart's point that is pointed at, tapped or focused; arrow keys go from point to point. */
const tip = document.createElement("div");
tip.className = "tip";
tip.hidden = true;
document.body.append(tip);
let shown = null;
function show(point) {
  shown = point;
  tip.hidden = point === null;
  if (point === null) return;
  tip.textContent = point.getAttribute("aria-label");
  const box = point.getBoundingClientRect(), own = tip.getBoundingClientRect();
  const left = Math.min(Math.max(box.left + box.width / 2 - own.width / 2, 8), innerWidth - own.width - 8);
  const above = box.top - own.height - 8;
  tip.style.left = `${left}px`;
  tip.style.top = `${above < 4 ? box.bottom + 8 : above}px`;
}
const pointOf = event => event.target instanceof Element ? event.target.closest(".point") : null;
document.addEventListener("pointerover", event => { const point = pointOf(event); if (point !== shown) show(point); });
document.addEventListener("focusin", event => show(pointOf(event)));
document.addEventListener("focusout", () => show(null));
const isMeant = point => point && (point === document.activeElement || point.matches(":hover"));
addEventListener("scroll", () => show(isMeant(shown) ? shown : null), {passive: true});
document.addEventListener("keydown", event => {
  if (event.key === "Escape") show(null);
  const point = pointOf(event);
  if (!point) return;
  const chart = point.closest("svg"), points = [...chart.querySelectorAll(".point")];
  const columns = Number(chart.dataset.columns || 1);
  const step = {ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns}[event.key];
  const next = step && points[points.indexOf(point) + step];
  if (!next) return;
  event.preventDefault();
  point.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
});
/* The slider between two models. */
for (const slider of document.querySelectorAll(".compare input")) {
  const set = () => slider.closest(".compare").style.setProperty("--share", `${slider.value}%`);
  slider.addEventListener("input", set);
  set();
}
/* Boxes that scroll say so. */
function cue() {
  for (const box of document.querySelectorAll(".scroll")) box.classList.toggle("more", box.scrollWidth > box.clientWidth + 1);
}
cue();
addEventListener("resize", cue);
document.addEventListener("toggle", cue, true);
