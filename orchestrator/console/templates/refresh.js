(() => {
  const every = 3000;
  const live = () => document.getElementById("live");
  const busy = () => {
    const at = document.activeElement;
    return at !== null && ["INPUT", "SELECT", "TEXTAREA"].includes(at.tagName);
  };
  const filled = () => [...document.querySelectorAll("#live input[type=text]")].some((field) => field.value !== "");
  const stale = (text) => {
    const place = document.getElementById("stale");
    if (place !== null) { place.textContent = text; place.hidden = text === ""; }
  };
  const look = async () => {
    if (document.hidden || busy() || filled()) return;
    try {
      const answer = await fetch(location.href, { headers: { accept: "text/html" }, credentials: "same-origin", redirect: "error" });
      if (!answer.ok) throw new Error(String(answer.status));
      // The policy of this page does not know the nonce of that one.
      const text = (await answer.text()).replace(/<(style|script)\b[\s\S]*?<\/\1>/g, "");
      const page = new DOMParser().parseFromString(text, "text/html");
      const next = page.getElementById("live");
      const at = live();
      if (next === null || at === null || busy() || filled()) return;
      const held = document.activeElement !== null ? document.activeElement.id : "";
      const open = [...at.querySelectorAll("details[open]")].map((part) => part.id);
      at.replaceWith(document.adoptNode(next));
      for (const id of open) { const part = document.getElementById(id); if (part !== null) part.open = true; }
      if (held !== "") { const part = document.getElementById(held); if (part !== null) part.focus({ preventScroll: true }); }
      document.title = page.title;
      stale("");
    } catch (error) {
      stale("The console does not answer; what you see may be old.");
    }
  };
  setInterval(look, every);
})();
