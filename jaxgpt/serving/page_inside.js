// Inside the model: where each head looks, and what the model would write if it ended after each layer.
let looked = null;   // the text that the panel shows, its tokens, and the attention of the chosen layer

// What is looked into: the part of the text that is selected, the messages of a chat, or the whole text.
function lookedAt() {
  const selection = getSelection(), within = selection.rangeCount && $("text").contains(selection.anchorNode);
  if (within && String(selection)) return { prompt: String(selection) };
  return chatting() ? { messages: turns } : { prompt: before + points.join("") };
}

async function inside(body) {
  return (await ask("v1/inside", { method: "POST", body: JSON.stringify(body) })).json();
}

async function lookInside() {
  const body = lookedAt();
  $("look").disabled = true;
  say("…");
  try {
    const found = await inside(body);
    looked = { body, ...found };
    $("layer").max = found.layers - 1;
    $("lens").replaceChildren(...lensRows(found));
    $("lens").querySelector(".token").tabIndex = 0;
    $("inside").hidden = false;
    await showLayer();
    say("");
    $("inside").scrollIntoView({ behavior: "smooth" });
  } catch (error) {
    say(error instanceof TypeError ? "The server cannot be reached." : error.message, true);
  } finally {
    $("look").disabled = false;
  }
}

function closeInside() {
  looked = null;
  $("inside").hidden = true;
}

// A row for each layer, the last one on top, and a column for each token of the text.
function lensRows({ tokens, lens }) {
  const head = element("tr");
  head.append(element("th", "", "behind"), ...tokens.map((token) => element("th", "", visible(token))));
  const rows = lens.map((places, n) => {
    const row = element("tr");
    row.append(element("th", "", n ? "layer " + (n - 1) : "embedding"), ...places.map(lensCell));
    return row;
  });
  return [head, ...rows.reverse()];
}

function lensCell(top) {
  const [token, logprob] = Object.entries(top).reduce((best, each) => (each[1] > best[1] ? each : best));
  const cell = element("td", "token", visible(token));
  cell.parts = [{ token, logprob, top }];
  cell.tabIndex = -1;
  cell.style.setProperty("--share", shareOf(logprob));
  return cell;
}

async function showLayer() {
  const layer = $("layer").valueAsNumber, asked = looked;
  $("layer-shown").value = layer;
  const { attention } = await inside({ ...asked.body, layer });
  if (looked !== asked || $("layer").valueAsNumber !== layer) return;  // something else is asked for by now
  looked.attention = attention;
  looked.head = Math.min(looked.head ?? 0, attention.length - 1);
  $("heads").replaceChildren(...attention.map(headButton));
  $("looks").replaceChildren(...looked.tokens.map((token, place) => {
    const made = element("span", "from", visible(token));
    made.tabIndex = place ? -1 : 0;   // one stop for Tab; arrows move within
    return made;
  }));
  showHead(looked.head);
}

function headButton(rows, head) {
  const button = element("button"), canvas = element("canvas");
  button.type = "button";
  button.setAttribute("aria-label", "Head " + head);
  button.title = "head " + head;
  paint(canvas, rows);
  button.append(canvas, element("span", "", head));
  button.addEventListener("click", () => showHead(head));
  return button;
}

// A heat map: a row for each token, a column for each token that it looks at.
function paint(canvas, rows) {
  const size = rows.length, place = canvas.getContext("2d");
  canvas.width = canvas.height = size;
  place.fillStyle = getComputedStyle($("sheet")).getPropertyValue("--accent");
  rows.forEach((row, t) => row.forEach((weight, s) => {
    place.globalAlpha = weight;
    place.fillRect(s, t, 1, 1);
  }));
}

function showHead(head) {
  looked.head = head;
  [...$("heads").children].forEach((button, n) => button.setAttribute("aria-pressed", n === head));
  showFrom(looked.from ?? looked.tokens.length - 1);
}

// The tokens that one token looks at, each the stronger the more weight it has.
function showFrom(from) {
  looked.from = from;
  const weights = looked.attention[looked.head][from];
  [...$("looks").children].forEach((token, place) => {
    token.style.setProperty("--weight", Math.round(100 * (weights[place] ?? 0)));
    token.title = place in weights ? (100 * weights[place]).toFixed(1) + " %" : "it comes later and is not seen";
    token.classList.toggle("chosen", place === from);
  });
}

const fromAt = (event) => [...$("looks").children].indexOf(event.target.closest?.(".from"));
$("look").addEventListener("mousedown", (event) => event.preventDefault());  // what is selected stays so
$("look").addEventListener("click", lookInside);
$("close").addEventListener("click", closeInside);
$("layer").addEventListener("input", () => showLayer().catch((error) => say(error.message, true)));
for (const kind of ["mouseover", "focusin"]) {
  $("looks").addEventListener(kind, (event) => fromAt(event) >= 0 && showFrom(fromAt(event)));
}
$("looks").addEventListener("keydown", (event) => moveFocus(event, "from"));
