// Equations do not break: one that is wider than its column is set smaller, so that nothing has to be scrolled.
"use strict";

function fit() {
  for (const equation of document.querySelectorAll(".bd-content div.math mjx-container")) {
    equation.style.fontSize = "";
    const size = Math.floor((98 * equation.clientWidth) / equation.scrollWidth);
    if (equation.scrollWidth > equation.clientWidth) {
      equation.style.fontSize = `${size}%`;
    }
  }
}

addEventListener("load", () => {
  const ready = window.MathJax?.startup?.promise ?? Promise.resolve();
  ready.then(fit);
  addEventListener("resize", fit);
});
