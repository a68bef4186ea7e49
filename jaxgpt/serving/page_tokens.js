// The text as it is shown: each token with its probability, and with its alternatives when one points at it.
function element(kind, className, text) {
  const made = document.createElement(kind);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

const visible = (token) => token.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\t/g, "⇥").replace(/^bytes:/, "");
const percent = (logprob) => {
  const share = 100 * Math.exp(logprob);
  return (share >= 99.95 ? "100" : share >= 10 ? share.toFixed(1) : share >= 0.01 ? share.toFixed(2) : "< 0.01") + " %";
};

function add(choice) {
  points.push(...choice.text);
  const { tokens, token_logprobs, top_logprobs, text_offset } = choice.logprobs;
  tokens.forEach((token, i) => {
    parts.push({ token, logprob: token_logprobs[i], top: top_logprobs[i] });
    const next = i + 1 < tokens.length ? text_offset[i + 1] : points.length;
    const text = points.slice(text_offset[i], next).join("");
    if (text || token === END) append(text);
  });
}

// A choice of a chat's chunk in the shape of the other route's: with offsets, which count code points.
function asText(choice, decoding) {
  const entries = choice.logprobs?.content ?? [];
  return {
    text: choice.delta.content ?? "",
    finish_reason: choice.finish_reason,
    logprobs: {
      tokens: entries.map((entry) => entry.token),
      token_logprobs: entries.map((entry) => entry.logprob),
      top_logprobs: entries.map((entry) =>
        Object.fromEntries([...entry.top_logprobs, entry].map((each) => [each.token, each.logprob]))),
      text_offset: entries.map((entry) => {
        const offset = decoding.count;
        if (entry.token !== END) {
          decoding.count += [...decoding.decoder.decode(new Uint8Array(entry.bytes), { stream: true })].length;
        }
        return offset;
      }),
    },
  };
}

// How likely a token is, from 0 to 100, as it is coloured (tokens.css). 6 nats are one in 400.
const shareOf = (logprob) => Math.round(100 * Math.max(0, 1 + logprob / 6));

function append(text) {
  const kind = !text ? " end" : text.includes("\n") ? " line" : "";
  const made = element("span", "token" + kind, text || "end of text");
  const logprob = parts.reduce((sum, part) => sum + part.logprob, 0);
  made.parts = parts;
  made.style.setProperty("--share", shareOf(logprob));
  made.tabIndex = last ? -1 : 0;   // one stop for Tab; arrows move within
  made.setAttribute("aria-describedby", "tip");
  parts = [];
  last = made;
  $("text").append(made);
}

function table(part) {
  const made = element("table");
  made.append(element("caption", "", "“" + visible(part.token) + "”  " + percent(part.logprob)));
  const rows = Object.entries(part.top).sort((a, b) => b[1] - a[1]);
  for (const [token, logprob] of rows) {
    const row = element("tr", token === part.token ? "chosen" : "");
    const bar = element("div", "bar"), cell = element("td");
    bar.style.setProperty("--share", 100 * Math.exp(logprob));
    cell.append(bar);
    row.append(element("td", "", visible(token)), cell, element("td", "", percent(logprob)));
    made.append(row);
  }
  return made;
}

function showTip(token) {
  hideTip();
  token.classList.add("shown");
  const tip = $("tip"), place = token.getClientRects()[0];
  tip.replaceChildren(...token.parts.map(table));
  tip.hidden = false;
  const left = Math.min(Math.max(8, place.left - 16), document.documentElement.clientWidth - tip.offsetWidth - 8);
  const below = place.bottom + 8, above = place.top - tip.offsetHeight - 8;
  tip.style.left = left + scrollX + "px";
  tip.style.top = (below + tip.offsetHeight > innerHeight && above > 0 ? above : below) + scrollY + "px";
}

function hideTip() {
  $("tip").hidden = true;
  document.querySelector(".shown")?.classList.remove("shown");
}

// The arrows move the focus from one element of a class to the next.
function moveFocus(event, className) {
  const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
  const from = event.target.closest?.("." + className), to = step && from && from[step];
  if (!to?.classList.contains(className)) return;
  event.preventDefault();
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

const tokenAt = (event) => event.target.closest?.(".token");
for (const place of [$("text"), $("lens")]) {
  place.addEventListener("mouseover", (event) => tokenAt(event) && showTip(tokenAt(event)));
  place.addEventListener("mouseleave", hideTip);
  place.addEventListener("focusin", (event) => tokenAt(event) && showTip(tokenAt(event)));
  place.addEventListener("focusout", hideTip);
  place.addEventListener("keydown", (event) => moveFocus(event, "token"));
}
