// What Gradio runs once for each part of the page. `element` stays the same node when its content changes.

const wanted = ["act", "item", "model", "place", "by"];

element.addEventListener("click", (event) => {
  const target = event.target.closest("[data-act]");
  if (!target) return;
  const data = Object.fromEntries(wanted.filter((name) => name in target.dataset).map((name) => [name, target.dataset[name]]));
  trigger("act", data);
});

// A button that a keyboard has just pressed may be gone with the change it made; the focus goes to what is in its place.
let focused = null;
element.addEventListener("focusin", (event) => {
  const buttons = [...element.querySelectorAll("button")];
  focused = { place: buttons.indexOf(event.target), item: event.target.dataset.item, act: event.target.dataset.act };
});
element.addEventListener("focusout", () => {
  queueMicrotask(() => {
    if (document.activeElement !== document.body) focused = null;
  });
});
watch("value", () => {
  if (!focused || (document.activeElement !== document.body && document.activeElement !== null)) return;
  const buttons = [...element.querySelectorAll("button")];
  const same = buttons.find((button) => button.dataset.act === focused.act && button.dataset.item === focused.item && focused.item);
  (same ?? buttons[Math.min(Math.max(focused.place, 0), buttons.length - 1)])?.focus();
});

const toggle = element.querySelector("[data-theme-toggle]");
if (toggle) {
  const key = "cemg-demo-theme";
  const kept = localStorage.getItem(key);
  if (kept) document.body.classList.toggle("dark", kept === "dark");
  toggle.addEventListener("click", () => {
    localStorage.setItem(key, document.body.classList.toggle("dark") ? "dark" : "light");
  });
}
