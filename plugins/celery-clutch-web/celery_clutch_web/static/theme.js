// Before anything is drawn: the theme that was chosen, if one was. The system decides otherwise.
(() => {
  let theme = null;
  try { theme = localStorage.getItem("clutch-theme"); } catch { /* storage is forbidden */ }
  if (theme === "dark" || theme === "light") document.documentElement.dataset.theme = theme;
})();
