"use strict";
// Charts: their specifications stand as JSON in the page. `ast`: expressions are interpreted, since the page forbids eval.
const dark = matchMedia("(prefers-color-scheme: dark)");
function drawCharts() {
  const ink = dark.matches ? "#c5ced8" : "#36424e", grid = dark.matches ? "#2b3641" : "#e6eaee";
  const colours = dark.matches ? ["#6cb4ee", "#f0a35e", "#5fcfa4", "#d99ad0"] : ["#0b62a4", "#d1600a", "#00875a", "#a0438f"];
  const config = {
    background: null, view: {stroke: null}, range: {category: colours}, mark: {color: colours[0]}, line: {strokeWidth: 2},
    text: {color: ink, fontSize: 12}, legend: {labelColor: ink, labelFontSize: 12, symbolType: "stroke", symbolSize: 400},
    axis: {labelColor: ink, titleColor: ink, gridColor: grid, domainColor: grid, tickColor: grid, titleFontWeight: "normal",
      labelFontSize: 12, titleFontSize: 12},
  };
  const specs = JSON.parse(document.getElementById("specs").textContent);
  specs.forEach((spec, i) => {
    const place = document.getElementById(`chart-${i}`);
    vegaEmbed(place, spec, {actions: false, renderer: "svg", ast: true, config}).catch((error) => {
      place.className = "failed";
      place.textContent = `This chart could not be drawn: ${error.message}`;
    });
  });
}
drawCharts();
dark.addEventListener("change", drawCharts);

// Grids over time: the slider and the buttons choose which of the small pictures is shown large.
const slider = document.getElementById("slider");
if (slider) {
  const large = document.getElementById("large"), label = document.getElementById("large-label");
  const buttons = [...document.querySelectorAll(".strip button")];
  const choose = (place) => {
    const small = buttons[place].querySelector("img");
    large.src = small.src;
    large.alt = small.alt;
    label.textContent = small.alt;
    slider.value = place;
    slider.setAttribute("aria-valuetext", buttons[place].innerText);
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === place));
  };
  slider.addEventListener("input", () => choose(Number(slider.value)));
  buttons.forEach((button, i) => button.addEventListener("click", () => choose(i)));
  choose(buttons.length - 1);
}
