// Runs before the page is drawn, so that a chosen theme does not flash.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("dreamgrid-theme");
  } catch {
    return; // storage is switched off: the theme of the system
  }
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
})();
