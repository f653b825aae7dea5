// Equations do not break: one that is wider than its column is set smaller, so that nothing has to be scrolled.
"use strict";

function fit() {
  for (const box of document.querySelectorAll(".bd-content div.math")) {
    for (const equation of box.querySelectorAll("mjx-container")) {
      equation.style.fontSize = "";
      const number = box.querySelector(":scope > .eqno");
      const beside = number && getComputedStyle(number).float === "right" ? number.offsetWidth + 8 : 0;
      const set = equation.querySelector("mjx-math, svg") || equation;
      const wide = set.getBoundingClientRect().width;
      const room = box.clientWidth - 2 * beside;
      if (wide > room && room > 0) {
        equation.style.fontSize = `${Math.floor((98 * room) / wide)}%`;
      }
    }
  }
}

addEventListener("load", () => {
  const ready = window.MathJax?.startup?.promise ?? Promise.resolve();
  ready.then(fit);
  addEventListener("resize", fit);
});
