// Sets the theme that was chosen before, while the page is still blank. Without a choice the system's counts.
{
  const chosen = localStorage.getItem("soma-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
