// Sets the theme before anything is painted: a plain script in <head>, so the page never flashes in the other one.
// "auto" follows the system, and is what the page does without a choice.
document.documentElement.dataset.theme = (() => {
  try {
    return JSON.parse(localStorage.getItem("windback.theme")) || "auto";
  } catch {
    return "auto"; // storage can be switched off
  }
})();
