// SPDX-License-Identifier: Apache-2.0
// What can be pulled sideways can also be reached and moved by the keyboard.
function reachByKeyboard() {
  for (const part of document.querySelectorAll(".cell_output, figure, div.math, pre, .pst-scrollable-table-container")) {
    if (part.scrollWidth > part.clientWidth + 1) part.tabIndex = 0;
  }
}
addEventListener("load", reachByKeyboard);
addEventListener("resize", reachByKeyboard);

// The search lists a page once, at its best place: a term of the glossary is not followed by the glossary as a whole.
document.addEventListener("DOMContentLoaded", () => {
  if (typeof Search === "undefined") return;
  const perform = Search._performSearch;
  Search._performSearch = (...query) => {
    const seen = new Set();
    const bestFirst = perform(...query).reverse().filter(([page, title]) => {
      const first = !seen.has(page + "\n" + title);
      seen.add(page + "\n" + title);
      return first;
    });
    return bestFirst.reverse(); // Sphinx takes results from the end
  };
});
