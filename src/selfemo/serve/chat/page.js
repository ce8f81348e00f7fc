"use strict";
// The page's own behaviour: the newest turn stays in view, the panel fits the screen, characters are chosen.
(() => {
  const meta = document.querySelector("meta[name=viewport]");
  // A phone's keyboard makes the page smaller, so that the text box stays above it.
  if (meta) meta.content += ", interactive-widget=resizes-content";

  const end = (box) => { box.scrollTop = box.scrollHeight; };

  // Follow the conversation, unless its reader scrolled up.
  const follow = (box) => {
    box.atEnd = true;
    box.addEventListener("scroll", () => {
      box.atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
    }, { passive: true });
    const keep = () => { if (box.atEnd) end(box); };
    new MutationObserver(keep).observe(box, { childList: true, subtree: true, characterData: true });
    new ResizeObserver(keep).observe(box);
    box.tabIndex = 0;  // a region that scrolls must be reachable by keyboard
  };

  // Where the panel begins: it takes the rest of the screen.
  const fit = () => {
    const panel = [...document.querySelectorAll(".se-panel")].find((p) => p.offsetParent);
    if (!panel) return;
    const top = Math.round(panel.getBoundingClientRect().top + window.scrollY);
    document.documentElement.style.setProperty("--se-top", `${top}px`);
  };

  // While the character writes, no other line can be sent: the box says so, and what is typed in it stays.
  const wait = () => {
    const pause = document.querySelector("#pause");
    if (pause) {
      const idle = !pause.closest(".se-panel").querySelector(".se-busy");
      if (pause.disabled !== idle) pause.disabled = idle;
    }
    const box = document.querySelector("#line textarea"), panel = box?.closest(".se-panel");
    if (!panel) return;
    const who = panel.querySelector(".se-busy")?.dataset.who;
    box.dataset.hint ??= box.placeholder;
    const hint = who ? `${who} is writing …` : box.dataset.hint;
    if (box.placeholder !== hint) box.placeholder = hint;
    const send = panel.querySelector(".se-say button");
    if (send && send.disabled !== !!who) send.disabled = !!who;
  };

  // gradio's client cannot cancel an event before the server has queued it: the server refuses (422) and
  // the answer is lost. So a press of a button waits until all events that were sent are queued.
  const joining = new Set();
  // When an event was last sent, when the server was last heard and last did something for an event, whether
  // it was not reached, how many streams of answers are open, and what is told of it all.
  const line = { asked: 0, heard: 0, answered: 0, failed: false, open: 0, told: "" };
  const ask = window.fetch.bind(window);
  window.fetch = (where, how) => {
    const answer = ask(where, how);
    const path = String(where?.url ?? where).split("?")[0];
    if (path.endsWith("/queue/join")) {
      joining.add(answer);
      line.asked = Date.now();
      line.failed = false;
      answer.then((a) => { line.failed = !a.ok; }, () => { line.failed = true; });
      // A moment later, so that the client has read the answer.
      answer.catch(() => {}).finally(() => setTimeout(() => joining.delete(answer), 50));
    } else if (path.endsWith("/queue/data")) {
      answer.then((a) => listen(a.clone())).catch(() => {});
    }
    return answer;
  };
  const listen = async (answer) => {
    const reader = answer.body.getReader(), decoder = new TextDecoder();
    let text = "";
    line.open += 1;
    try {
      for (let part; !(part = await reader.read()).done;) {
        line.heard = Date.now();
        text += decoder.decode(part.value, { stream: true });
        if (/process_generating|process_completed|close_stream/.test(text)) { line.answered = Date.now(); text = ""; }
        text = text.slice(-40);  // a word may come in two parts
      }
    } finally {
      line.open -= 1;
    }
  };

  // An answer that is lost looks like one that takes long, so the page says which it is: while an event waits
  // or is answered, the server is heard every 15 seconds.
  const LATE = 6000, SILENT = 20000;
  const due = () => line.failed || line.asked > line.answered || !!document.querySelector(".se-busy");
  const told = () => {
    if (line.failed) return "That did not reach the server. Send it again.";
    if (due() && Date.now() - Math.max(line.asked, line.heard) > (line.open ? SILENT : LATE)) {
      return "The server does not answer. When it runs again, reload this page and send your line again.";
    }
    return line.told;
  };
  const watch = () => {
    restore();
    // A moment after it was sent, nothing is due any more: its answer has come.
    if (sending && Date.now() - sending.at > 3000 && !due()) sending = null;
    const panel = [...document.querySelectorAll(".se-panel")].find((p) => p.offsetParent);
    const said = panel ? told() : "";
    let note = document.querySelector(".se-lost");
    if (!said) { note?.remove(); return; }
    if (!note) {
      note = document.createElement("p");
      note.className = "se-note se-lost";
      note.setAttribute("role", "alert");
    }
    if (note.parentNode !== panel) panel.append(note);
    if (note.textContent !== said) note.textContent = said;
  };

  // gradio loads the page anew once a lost connection is back: the line that was sent returns to its box.
  const KEPT = "selfemo-line";
  let sending = null, kept = null;
  try {
    kept = JSON.parse(sessionStorage.getItem(KEPT));
    sessionStorage.removeItem(KEPT);
  } catch { /* no storage here */ }
  if (kept) line.told = "This page was loaded anew before the answer came. Send your line again.";
  addEventListener("pagehide", () => {
    try { if (sending && due()) sessionStorage.setItem(KEPT, JSON.stringify(sending)); } catch { /* as above */ }
  });
  const restore = () => {
    const box = kept && document.querySelector(`#${kept.id} textarea`);
    if (!box) return;
    // gradio may still empty the box while it builds the page: a second look must find the line there.
    if (box.value) { kept = null; return; }
    box.value = kept.text;
    box.dispatchEvent(new Event("input", { bubbles: true }));
  };
  const queued = (then) => { joining.size ? setTimeout(() => queued(then), 20) : then(); };
  const hold = (event) => {
    const button = event.target.closest?.(".se-panel button");
    if (!button || !joining.size) return;
    event.stopImmediatePropagation();
    event.preventDefault();
    queued(() => button.click());
  };

  const mouse = matchMedia("(hover: hover)").matches;  // a phone's keyboard covers half the screen
  const seen = new WeakSet();
  const look = () => {
    const line = document.querySelector("#line textarea");
    if (mouse && line && !seen.has(line)) { seen.add(line); line.focus(); }
    for (const box of document.querySelectorAll(".se-scroll")) {
      if (!seen.has(box)) { seen.add(box); follow(box); }
    }
    for (const dialog of document.querySelectorAll("dialog.se-gallery")) {
      if (!seen.has(dialog)) { seen.add(dialog); gallery(dialog); }
    }
    fit();
    wait();
  };

  // One's own new line is always shown, also after one scrolled up.
  const sent = (event) => {
    const panel = event.target.closest?.(".se-panel");
    const box = panel?.querySelector(".se-scroll");
    const enter = event.type === "keydown" && event.key === "Enter" && event.target.closest(".se-say");
    if (box && (enter || (event.type === "click" && event.target.closest(".se-say button")))) {
      const typed = event.target.closest(".se-say").querySelector("textarea");
      if (typed?.value.trim()) {
        sending = { id: typed.closest("[id]:not(textarea)").id, text: typed.value, at: Date.now() };
        kept = null;
        line.told = "";
      }
      box.atEnd = true;
      end(box);
    }
  };

  let done = () => {};
  const gallery = (dialog) => {
    const find = (css) => dialog.querySelector(css);
    const cards = [...dialog.querySelectorAll(".se-card")];
    const search = find(".se-search"), name = find(".se-name"), like = find(".se-like");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let left = 0;
      for (const card of cards) {
        const text = `${card.dataset.name} ${card.dataset.about}`.toLowerCase();
        card.hidden = !words.every((word) => text.includes(word));
        left += !card.hidden;
      }
      find(".se-count").textContent = left ? `${left} of ${cards.length} characters` : "Nobody like that here: write your own.";
    };
    const use = (who, about) => { dialog.close(); queued(() => done(who, about)); };
    search.addEventListener("input", filter);
    for (const card of cards) card.addEventListener("click", () => use(card.dataset.name, card.dataset.about));
    find(".se-close").addEventListener("click", () => dialog.close());
    find(".se-use").addEventListener("click", () => use(name.value, like.value));
    dialog.addEventListener("click", (e) => { if (e.target === dialog) dialog.close(); });
    window.selfemoChoose = (chosen) => {
      done = chosen;
      [search.value, name.value, like.value] = ["", "", ""];
      filter();
      dialog.showModal();
      find(".se-cards").scrollTop = 0;
      if (mouse) search.focus();
    };
  };

  document.addEventListener("click", hold, true);
  document.addEventListener("keydown", sent, true);
  document.addEventListener("click", sent, true);
  addEventListener("resize", fit);
  let planned = 0;
  const soon = () => { planned ||= requestAnimationFrame(() => { planned = 0; look(); }); };
  const start = () => {
    new MutationObserver(soon).observe(document.body, {
      childList: true, subtree: true, attributeFilter: ["style", "class"],
    });
    look();
    setInterval(watch, 1000);
  };
  if (document.body) start();
  else document.addEventListener("DOMContentLoaded", start);
})();
