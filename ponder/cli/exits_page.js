(function () {
  "use strict";
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("thresholds-data").textContent);
  const kind = find("kind"), slider = find("threshold"), here = find("here"), box = data.box;
  const percent = (share) => (100 * share).toFixed(2) + "%";
  const bound = (share) => (Math.ceil(10000 * share - 1e-6) / 100).toFixed(2) + "%";  // never below what was found
  const times = (ratio) => "×" + ratio.toFixed(2);

  // Time is taken to be linear in the mean exit step, between the two mixes that were timed.
  function seconds(mean) {
    const [none, chosen] = data.seconds.steps, [plain, exits] = data.seconds.speed;
    if (none === chosen) { return none === mean ? times(plain) : "not measured"; }
    const part = (none - mean) / (none - chosen);
    const time = (1 - part) / plain + part / exits;
    return time > 0 ? times(1 / time) : "not measured";
  }

  function show() {
    data.curves.forEach((_, at) => find("line-" + at).setAttribute("class", at === kind.selectedIndex ? "line" : "other"));
    here.before(find("line-" + kind.selectedIndex));  // on top of the others
    const curve = data.curves[kind.selectedIndex], at = Number(slider.value);
    const mean = curve.mean[at], up = data.steps / mean, differ = curve.differ[at];
    find("at").textContent = curve.values[at];
    find("differ").textContent = percent(differ);
    find("promise").textContent = curve.promise[at] >= 0.999 ? "nothing" : "≤ " + bound(curve.promise[at]);
    find("mean").textContent = mean.toFixed(2) + " of " + data.steps;
    find("steps").textContent = times(up);
    find("flops").textContent = times(curve.flops[at]);
    find("seconds").textContent = seconds(mean);
    slider.setAttribute("aria-valuetext", percent(differ) + " other answers, " + times(up) + " in steps");
    here.setAttribute("cx", box.left + box.plot * (up - 1) / Math.max(data.steps - 1, 1));
    here.setAttribute("cy", box.top + box.tall * (1 - Math.min(differ / data.most, 1)));
  }

  function choose(place) {
    const curve = data.curves[kind.selectedIndex];
    slider.max = curve.values.length - 1;
    slider.value = place ?? Math.max(0, curve.promise.findLastIndex((promise) => data.most / 3 >= promise));
    show();
  }

  kind.selectedIndex = Math.max(0, data.curves.findIndex((curve) => curve.policy === data.kind));
  kind.addEventListener("change", () => choose(null));
  slider.addEventListener("input", show);
  choose(data.place);
})();
