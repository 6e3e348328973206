// All of it is there without this script. With it the page follows what happens, and arrow keys go over the servers.
"use strict";
(() => {
  const atOnce = document.querySelector("form[data-at-once]");
  if (atOnce) return atOnce.requestSubmit();
  document.documentElement.classList.add("js");

  const { live, again, after } = document.body.dataset;
  const status = document.getElementById("live");
  const said = document.getElementById("said");

  function tell(words, cut) {
    if (status.textContent !== words) status.textContent = words;
    status.classList.toggle("cut", Boolean(cut));
  }

  // -- what is above the servers is written by the server, and put in place of what was there ---------------------
  const where = live ? `${live}/top` : location.pathname + location.search.replace(/[?&]did=[a-z]+/, "");
  let asking = false;
  let wanted = false;

  async function refresh() {
    if (asking) return; // `wanted` stays, and it is asked again right after
    wanted = false;
    if (document.hidden) return;
    const old = document.getElementById("top");
    const selected = getSelection();
    if (!selected.isCollapsed && old.contains(selected.anchorNode)) return; // somebody is copying a command
    asking = true;
    try {
      const answer = await fetch(where, { redirect: "manual", headers: { accept: "text/html" } });
      if (answer.type === "opaqueredirect") return location.reload(); // no longer let in
      if (!answer.ok) throw new Error(String(answer.status));
      const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("top");
      if (fresh) put(old, fresh);
      if (!live) tell("Live");
    } catch {
      if (!live) tell("Cut off, trying again", true);
    } finally {
      asking = false;
      if (wanted) setTimeout(refresh, 1500);
    }
  }

  function put(old, fresh) {
    const before = old.querySelector("h1").textContent;
    const focused = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceWith(fresh);
    if (focused) [...fresh.querySelectorAll("a")].find((a) => a.getAttribute("href") === focused)?.focus();
    const now = fresh.querySelector("h1").textContent;
    if (now === before) return;
    said.textContent = now;
    document.title = document.title.replace(before, now);
  }

  if (live || again) setInterval(refresh, 1000 * (again || 10));
  document.addEventListener("visibilitychange", refresh);
  if (!live) return;

  // -- each server is a cell --------------------------------------------------------------------------------------
  const cells = new Map();
  const counts = new Map();
  const legend = new Map();
  for (const item of document.querySelectorAll(".legend li")) {
    legend.set(item.dataset.kind, { item, number: item.querySelector("b"), says: item.childNodes[1].textContent.trim() });
    counts.set(item.dataset.kind, 0);
  }
  const order = [...document.querySelectorAll(".grid a")];
  order.forEach((cell, place) => {
    cells.set(cell.getAttribute("href"), cell);
    counts.set(cell.className, counts.get(cell.className) + 1);
    cell.tabIndex = place ? -1 : 0;
  });

  const coming = new Map();
  function draw() {
    for (const [server, kind] of coming) {
      const cell = cells.get(server);
      if (!cell || cell.className === kind || !legend.has(kind)) continue;
      counts.set(cell.className, counts.get(cell.className) - 1);
      counts.set(kind, counts.get(kind) + 1);
      cell.className = kind;
      const small = cell.querySelector("small");
      if (small) small.textContent = legend.get(kind).says;
    }
    coming.clear();
    for (const [kind, { item, number }] of legend) {
      item.hidden = !counts.get(kind);
      number.textContent = counts.get(kind).toLocaleString("en");
    }
  }

  const servers = document.querySelector(".servers");
  servers.addEventListener("mouseover", ({ target }) => {
    const cell = target.closest(".grid a");
    if (cell) cell.title = `${cell.getAttribute("href")}: ${legend.get(cell.className).says}`;
  });
  servers.addEventListener("keydown", (pressed) => {
    const place = order.indexOf(document.activeElement);
    if (place < 0 || pressed.altKey || pressed.ctrlKey || pressed.metaKey) return;
    const at = order[place].getBoundingClientRect();
    const below = (step) => {
      let best = null;
      for (let n = place + step; order[n]; n += step) {
        const other = order[n].getBoundingClientRect();
        if (step * (other.top - at.top) <= 1) continue;
        if (best && other.top !== best.top) break;
        const off = Math.abs(other.left - at.left);
        if (!best || off < best.off) best = { off, top: other.top, n };
      }
      return best ? best.n : place;
    };
    const to = {
      ArrowRight: () => Math.min(place + 1, order.length - 1),
      ArrowLeft: () => Math.max(place - 1, 0),
      ArrowDown: () => below(1),
      ArrowUp: () => below(-1),
      Home: () => 0,
      End: () => order.length - 1,
    }[pressed.key];
    if (!to) return;
    pressed.preventDefault();
    const next = order[to()];
    order[place].tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  });

  // -- what happens, as it happens ----------------------------------------------------------------------------------
  let last = after;
  let pause = 1000;

  function follow() {
    const source = new EventSource(`${live}/live?after=${encodeURIComponent(last)}`);
    source.onopen = () => {
      pause = 1000;
      tell("Live");
      refresh();
    };
    source.onmessage = (event) => {
      last = event.lastEventId;
      const told = JSON.parse(event.data);
      if (told.kind) {
        if (!coming.size) requestAnimationFrame(draw);
        coming.set(told.server, told.kind);
      }
      if (!wanted) setTimeout(refresh, 1500);
      wanted = true;
    };
    source.onerror = () => {
      tell("Cut off, trying again", true);
      if (source.readyState !== EventSource.CLOSED) return; // the browser asks again by itself, from `last` on
      setTimeout(follow, pause);
      pause = Math.min(2 * pause, 30000);
      refresh();
    };
  }
  follow();
})();
