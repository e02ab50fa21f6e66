// Fetches the page again every few seconds and puts what changed into it.
"use strict";
(() => {
  const EVERY = 5000;
  const live = document.getElementById("live");
  const pause = document.getElementById("pause");
  const state = document.getElementById("state");
  if (!live || !pause) return;
  const key = "fcp-dashboard-paused";
  let paused = sessionStorage.getItem(key) === "yes";
  let tag = null;
  let timer = null;
  let busy = false;

  // What a reader did must outlast the new content: the focus and what is unfolded.
  const swap = (html) => {
    const next = new DOMParser().parseFromString(html, "text/html");
    const fresh = next.getElementById("live");
    if (!fresh) { location.reload(); return; }
    const active = document.activeElement;
    const inside = active && live.contains(active);
    const focus = inside ? (active.id ? "#" + CSS.escape(active.id) : null) : null;
    const href = inside && active.getAttribute("href");
    const open = new Map([...live.querySelectorAll("details[id]")].map((d) => [d.id, d.open]));
    const typed = [...live.querySelectorAll("input[id], textarea[id], select[id]")]
      .map((field) => [field.id, field.value]);
    live.replaceChildren(...fresh.childNodes);
    for (const [id, was] of open) {
      const found = document.getElementById(id);
      if (found) found.open = was;
    }
    for (const [id, value] of typed) {
      const found = document.getElementById(id);
      if (found) found.value = value;
    }
    let target = focus && live.querySelector(focus);
    if (!target && href) {
      target = [...live.querySelectorAll("a")].find((a) => a.getAttribute("href") === href);
    }
    if (target) target.focus({ preventScroll: true });
    const problem = next.getElementById("problem");
    const shown = document.getElementById("problem");
    if (problem && shown) shown.replaceWith(document.adoptNode(problem));
    document.title = next.title;
  };

  const look = async () => {
    timer = null;
    if (paused || document.hidden || busy) return;
    busy = true;
    try {
      const headers = { Accept: "text/html", ...(tag && { "If-None-Match": tag }) };
      const answer = await fetch(location.href, {
        headers, credentials: "same-origin", cache: "no-store", redirect: "manual",
      });
      // Who is not logged in any more is sent to where one logs in.
      if (answer.type === "opaqueredirect" || answer.status === 403) { location.reload(); return; }
      if (answer.status === 200) { tag = answer.headers.get("ETag"); swap(await answer.text()); }
      state.textContent =
        answer.ok || answer.status === 304 ? "" : `The server answers with ${answer.status}.`;
    } catch {
      state.textContent = "The server does not answer; it is asked again.";
    } finally {
      busy = false;
      plan();
    }
  };
  const plan = () => {
    if (timer === null && !paused && !document.hidden) timer = setTimeout(look, EVERY);
  };
  const show = () => {
    pause.textContent = paused ? "Go on refreshing" : "Pause refreshing";
    pause.setAttribute("aria-pressed", String(paused));
  };
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    sessionStorage.setItem(key, paused ? "yes" : "no");
    clearTimeout(timer);
    timer = null;
    show();
    plan();
  });
  document.addEventListener("visibilitychange", () => { if (!document.hidden) look(); });
  document.addEventListener("submit", (event) => {
    const question = event.target.dataset.confirm;
    if (question && !confirm(question)) event.preventDefault();
  });
  show();
  plan();
})();
