const root = document.documentElement;
const button = document.getElementById("theme");
const dark = matchMedia("(prefers-color-scheme: dark)");
const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
const label = () => (button.textContent = isDark() ? "Light theme" : "Dark theme");
button.addEventListener("click", () => {
  root.dataset.theme = isDark() ? "light" : "dark";
  label();
});
dark.addEventListener("change", label);
label();
button.hidden = false;

for (const link of document.querySelectorAll("nav a")) {
  link.addEventListener("click", () => (document.querySelector(link.hash).open = true));
}
