// Draws what stands in data-chart; the table beside it says the same.
"use strict";

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function resolved(value) {
  // light-dark() is resolved by the browser, on an element.
  const probe = document.createElement("span");
  probe.style.color = value;
  document.body.append(probe);
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

const DAY = 86400;
const EVERY = [1, 5, 15, 30, 60, 300, 900, 1800, 3600, 7200, 14400, 21600, 43200, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY];

function moment(seconds, every) {
  const said = new Date(seconds * 1000).toISOString();
  if (every >= DAY) {
    return said.slice(5, 10);
  }
  return seconds % DAY === 0 ? said.slice(5, 10) : said.slice(11, every >= 60 ? 16 : 19);
}

function draw(place) {
  const told = JSON.parse(place.dataset.chart);
  const soft = resolved(colour("soft"));
  const line = resolved(colour("line"));
  const axis = { stroke: soft, grid: { stroke: line, width: 1 }, ticks: { stroke: line, width: 1 } };
  const series = told.series.map((one) => ({
    label: one.name,
    stroke: resolved(colour(one.tone)),
    dash: one.dash,
    width: 2,
    points: { show: told.times.length < 3 },
    paths: told.steps ? uPlot.paths.stepped({ align: 1 }) : undefined,
  }));
  const options = {
    width: place.clientWidth,
    height: 220,
    legend: { show: false },
    cursor: { show: false },
    scales: { y: { range: (_plot, _low, high) => [0, told.most || Math.max(high * 1.1, 4)] } },
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    axes: [
      { ...axis, incrs: EVERY, space: 70, values: (_plot, ticks, _axis, _space, every) => ticks.map((one) => moment(one, every)) },
      { ...axis, size: 56 },
    ],
    series: [{}, ...series],
  };
  place.replaceChildren();
  new uPlot(options, [told.times, ...told.series.map((one) => one.values)], place);
}

function all() {
  document.querySelectorAll("[data-chart]").forEach(draw);
}

all();
addEventListener("resize", all);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", all);
