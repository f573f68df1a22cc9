const LEFT = 74, TOP = 26, BUDGET = 6e6
const {B, H, q_len, kv_len} = page.sizes
const canvas = document.getElementById("canvas"), ink = canvas.getContext("2d")
const view = {q: 0, k: 0, scale: 1, b: page.b, h: page.h} // first query and key, tokens to a pixel
let width = 0, height = 0, exact = true
const bits = page.bits && decoded(page.bits)
const shares = page.grid && decoded(page.grid.table)
const full = decoded(page.full), open = decoded(page.open)

// What is visible

const truth = functions[0] ? (b, h, q, k) => functions[0](b, h, q, k)
  : bits ? (b, h, q, k) => bits[((b % page.lanes[0]) * page.lanes[1] + h % page.lanes[1]) * q_len * kv_len + q * kv_len + k]
  : null

function valueOf(part, at) {
  if (part.kind === "leaf") return functions[part.fn](...at)
  const values = part.parts.map(p => valueOf(p, at))
  if (part.kind === "and") return values.every(Boolean) ? 1 : 0
  if (part.kind === "or") return values.some(Boolean) ? 1 : 0
  return part.kind === "not" ? 1 - values[0] : values[0] ^ values[1]
}

// Why a part is false, as text: the parts that hide it, and the comparisons in them that fail.
function reasons(part, at) {
  if (part.kind === "and") return part.parts.filter(p => !valueOf(p, at)).map(p => reasons(p, at)).join(" and by ")
  if (part.kind === "or") return "all of: " + part.parts.map(p => reasons(p, at)).join("; ")
  if (part.kind === "leaf" && part.terms) {
    const failing = part.terms.filter(t => !functions[t.fn](...at)).map(t => t.text)
    return failing.length ? `${part.label} (${failing.join("; ")} is false)` : part.label
  }
  return part.label
}

function describe(b, h, q, k) {
  const place = `(b=${b}, h=${h}, q_idx=${q}, kv_idx=${k})`
  if (!truth) return `${place}: this page holds samples only`
  if (truth(b, h, q, k)) return `${place}: visible`
  return `${place}: hidden by ${page.tree ? reasons(page.tree, [b, h, q, k]) : page.mask}`
}

// The picture

function blank() { return {cover: new Float64Array(width * height), mixed: new Uint8Array(width * height)} }

// An element counts in the pixel that its centre falls in: edges[i] is the first one of pixel i.
let rowEdges = [], columnEdges = []
function edgesOf(start, pixels, length) {
  const edges = new Int32Array(pixels + 1)
  for (let i = 0; i <= pixels; i++) edges[i] = Math.min(length, Math.max(0, Math.ceil(start + i * view.scale - .5)))
  return edges
}

function eachPixel(q0, q1, k0, k1, visit) { // each pixel, with its part of a rectangle of elements
  const s = view.scale
  const top = Math.max(0, Math.floor((q0 - view.q) / s) - 1), bottom = Math.min(height, Math.ceil((q1 - view.q) / s) + 1)
  const left = Math.max(0, Math.floor((k0 - view.k) / s) - 1), right = Math.min(width, Math.ceil((k1 - view.k) / s) + 1)
  for (let y = top; y < bottom; y++) {
    const qa = Math.max(q0, rowEdges[y]), qb = Math.min(q1, rowEdges[y + 1])
    if (qa >= qb) continue
    for (let x = left; x < right; x++) {
      const ka = Math.max(k0, columnEdges[x]), kb = Math.min(k1, columnEdges[x + 1])
      if (ka < kb) visit(y * width + x, qa, qb, ka, kb)
    }
  }
}

function inView(q0, q1, k0, k1) {
  const s = view.scale
  return q1 > view.q && k1 > view.k && q0 < view.q + height * s && k0 < view.k + width * s
}

function* rectangles(data, columns) { // of this batch row and head, in tokens
  const b = page.lanes[0] > 1 ? view.b : 0, h = page.lanes[1] > 1 ? view.h : 0, [bq, bk] = page.block
  for (let i = 0; i < data.length; i += columns) {
    if (data[i] !== b || data[i + 1] !== h) continue
    const q = data[i + 2] * bq, k = data[i + 3] * bk
    const rows = columns > 4 ? data[i + 4] : 1, across = columns > 4 ? data[i + 5] : 1
    const r = [q, Math.min(q_len, q + rows * bq), k, Math.min(kv_len, k + across * bk)]
    if (inView(...r)) yield r
  }
}

function coverByTiles({cover, mixed}) {
  rowEdges = edgesOf(view.q, height, q_len)
  columnEdges = edgesOf(view.k, width, kv_len)
  for (const r of rectangles(full, 6)) eachPixel(...r, (at, qa, qb, ka, kb) => { cover[at] += (qb - qa) * (kb - ka) })
  const undecided = [...rectangles(open, 4)], [q9, k9] = [rowEdges[height], columnEdges[width]]
  let elements = 0
  for (const [q0, q1, k0, k1] of undecided) {
    elements += Math.max(0, Math.min(q1, q9) - Math.max(q0, rowEdges[0])) * Math.max(0, Math.min(k1, k9) - Math.max(k0, columnEdges[0]))
  }
  exact = truth !== null && elements <= BUDGET
  for (const r of undecided) eachPixel(...r, (at, qa, qb, ka, kb) => {
    if (!exact) {
      mixed[at] = 1
      cover[at] += (qb - qa) * (kb - ka) * sampled(qa, qb, ka, kb)
      return
    }
    let seen = 0
    for (let q = qa; q < qb; q++) for (let k = ka; k < kb; k++) seen += truth(view.b, view.h, q, k)
    cover[at] += seen
  })
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    cover[y * width + x] /= Math.max(1, (rowEdges[y + 1] - rowEdges[y]) * (columnEdges[x + 1] - columnEdges[x]))
  }
}

function sampled(q0, q1, k0, k1) { // the share of visible ones among four elements
  if (!truth) return .5
  let seen = 0
  for (let i = 0; i < 4; i++) {
    const q = Math.floor(q0 + (q1 - q0) * [.13, .38, .63, .88][i]), k = Math.floor(k0 + (k1 - k0) * [.38, .88, .13, .63][i])
    seen += truth(view.b, view.h, q, k)
  }
  return seen / 4
}

function coverByElements({cover}) { // an element is a pixel or more
  exact = true
  const s = view.scale, columns = new Int32Array(width), row = new Float64Array(width)
  for (let x = 0; x < width; x++) columns[x] = Math.floor(view.k + (x + .5) * s)
  let last = -1
  for (let y = 0; y < height; y++) {
    const q = Math.floor(view.q + (y + .5) * s)
    if (q < 0 || q >= q_len) continue
    if (q !== last) {
      for (let x = 0; x < width; x++) {
        const k = columns[x]
        row[x] = x && k === columns[x - 1] ? row[x - 1] : k >= 0 && k < kv_len ? truth(view.b, view.h, q, k) : 0
      }
      last = q
    }
    cover.set(row, y * width)
  }
}

function coverBySamples({cover, mixed}) { // a grid of shares is all that this page holds
  exact = false
  const {cell, across} = page.grid, s = view.scale
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const q = view.q + (y + .5) * s, k = view.k + (x + .5) * s
    if (q < 0 || k < 0 || q >= q_len || k >= kv_len) continue
    cover[y * width + x] = shares[Math.floor(q / cell) * across + Math.floor(k / cell)] / 100
    mixed[y * width + x] = 1
  }
}

const SHADES = [[244, 241, 234], [29, 106, 150], [236, 239, 241]] // hidden, visible, outside
function draw() {
  const picture = blank()
  if (page.grid) coverBySamples(picture)
  else if (truth && view.scale <= 1) coverByElements(picture)
  else coverByTiles(picture)
  const image = ink.createImageData(width, height), s = view.scale
  for (let y = 0; y < height; y++) for (let x = 0; x < width; x++) {
    const at = y * width + x, q = view.q + (y + .5) * s, k = view.k + (x + .5) * s
    const inside = q >= 0 && k >= 0 && q < q_len && k < kv_len
    let share = picture.cover[at]
    if (picture.mixed[at] || (share > 0 && share < 1)) share = Math.min(.88, Math.max(.14, share)) // a thin line stays seen
    for (let c = 0; c < 3; c++) image.data[at * 4 + c] = inside ? SHADES[0][c] + (SHADES[1][c] - SHADES[0][c]) * Math.min(1, share) : SHADES[2][c]
    image.data[at * 4 + 3] = 255
  }
  ink.fillStyle = "#fff"
  ink.fillRect(0, 0, canvas.width, canvas.height)
  ink.putImageData(image, LEFT, TOP)
  axes()
  const per = view.scale >= 1 ? `1 pixel is ${round(view.scale)} x ${round(view.scale)} elements` : `1 element is ${round(1 / view.scale)} pixels wide`
  const said = page.grid ? `shades are samples: ${page.why}` : exact ? "exact: every element that is not settled by a whole tile is evaluated"
    : "dark and light areas are certain; shades between are " + (truth ? "sampled" : "undecided")
  document.getElementById("status").textContent = `${per}; ${said}.`
}
const round = x => x >= 10 ? Math.round(x) : Math.round(x * 100) / 100

function axes() {
  ink.font = "11px ui-monospace, 'DejaVu Sans Mono', monospace"
  ink.fillStyle = ink.strokeStyle = "#66727d"
  const step = niceStep(64 * view.scale), s = view.scale, middle = s < 1 ? .5 : 0
  ink.textBaseline = "middle"
  ink.textAlign = "center"
  for (let k = Math.max(0, Math.ceil(view.k / step) * step); k < kv_len; k += step) {
    const x = LEFT + (k + middle - view.k) / s
    if (x > LEFT + width) break
    if (x >= LEFT) { ink.fillText(k, x, TOP - 14); ink.fillRect(x, TOP - 5, 1, 5) }
  }
  ink.textAlign = "right"
  for (let q = Math.max(0, Math.ceil(view.q / step) * step); q < q_len; q += step) {
    const y = TOP + (q + middle - view.q) / s
    if (y > TOP + height) break
    if (y >= TOP) { ink.fillText(q, LEFT - 8, y); ink.fillRect(LEFT - 5, y, 5, 1) }
  }
  ink.textAlign = "left"
  ink.fillText("q \\ kv", 4, TOP - 14)
  if (s > 1 / 8) return
  ink.fillStyle = "rgba(255,255,255,.7)"
  for (let k = Math.ceil(view.k); (k - view.k) / s < width; k++) ink.fillRect(LEFT + Math.round((k - view.k) / s), TOP, 1, height)
  for (let q = Math.ceil(view.q); (q - view.q) / s < height; q++) ink.fillRect(LEFT, TOP + Math.round((q - view.q) / s), width, 1)
}

function niceStep(least) {
  if (least <= 1) return 1
  for (let power = 1; ; power *= 2) if (power >= least) return power
}

// Moving about

function clamp() {
  const most = Math.max(q_len / height, kv_len / width, 1 / 48), s = view.scale = Math.min(most, Math.max(1 / 48, view.scale))
  view.q = Math.min(Math.max(0, view.q), Math.max(0, q_len - height * s))
  view.k = Math.min(Math.max(0, view.k), Math.max(0, kv_len - width * s))
}
let pending = 0
function redraw() { clamp(); pending ||= requestAnimationFrame(() => { pending = 0; draw() }) }
function zoom(factor, x = width / 2, y = height / 2) {
  const q = view.q + y * view.scale, k = view.k + x * view.scale
  view.scale *= factor
  clamp()
  view.q = q - y * view.scale
  view.k = k - x * view.scale
  redraw()
}
function showAll() { view.q = view.k = 0; view.scale = Infinity; redraw() }
function lookAt(q, k, across) { // elements from one side to the other, centred on one
  view.scale = across / width
  clamp()
  view.q = q + .5 - height * view.scale / 2
  view.k = k + .5 - width * view.scale / 2
  redraw()
}
function elementAt(x, y) {
  const q = Math.floor(view.q + y * view.scale), k = Math.floor(view.k + x * view.scale)
  return q >= 0 && k >= 0 && q < q_len && k < kv_len ? [q, k] : null
}
function resize() {
  width = Math.max(160, Math.min(1100, document.documentElement.clientWidth - LEFT - 40))
  height = Math.max(160, Math.min(1100, innerHeight - TOP - 230))
  canvas.width = width + LEFT
  canvas.height = height + TOP
  redraw()
}

let drag = null
canvas.addEventListener("wheel", e => { e.preventDefault(); zoom(e.deltaY > 0 ? 1.5 : 1 / 1.5, e.offsetX - LEFT, e.offsetY - TOP) }, {passive: false})
canvas.addEventListener("pointerdown", e => { canvas.setPointerCapture(e.pointerId); drag = {x: e.offsetX, y: e.offsetY, q: view.q, k: view.k} })
canvas.addEventListener("pointerup", () => { drag = null })
canvas.addEventListener("dblclick", e => zoom(1 / 4, e.offsetX - LEFT, e.offsetY - TOP))
canvas.addEventListener("pointermove", e => {
  if (drag) {
    view.q = drag.q - (e.offsetY - drag.y) * view.scale
    view.k = drag.k - (e.offsetX - drag.x) * view.scale
    return redraw()
  }
  const found = elementAt(e.offsetX - LEFT, e.offsetY - TOP)
  if (found && e.offsetX >= LEFT && e.offsetY >= TOP) document.getElementById("hover").textContent = describe(view.b, view.h, ...found)
})
addEventListener("keydown", e => {
  if (e.target.tagName === "INPUT") return
  const step = 60 * view.scale, keys = {"+": () => zoom(.5), "=": () => zoom(.5), "-": () => zoom(2), 0: showAll, ArrowLeft: () => { view.k -= step; redraw() }, ArrowRight: () => { view.k += step; redraw() }, ArrowUp: () => { view.q -= step; redraw() }, ArrowDown: () => { view.q += step; redraw() }}
  if (keys[e.key] && !e.ctrlKey && !e.metaKey) { e.preventDefault(); keys[e.key]() }
})
document.getElementById("in").onclick = () => zoom(.5)
document.getElementById("out").onclick = () => zoom(2)
document.getElementById("all").onclick = showAll
for (const [lane, most] of [["b", B], ["h", H]]) {
  const input = document.getElementById(lane)
  input.max = most - 1
  input.value = view[lane]
  if (B * H === 1) input.parentElement.style.display = "none"
  input.oninput = () => { view[lane] = Math.min(most - 1, Math.max(0, Math.floor(+input.value || 0))); redraw() }
}
document.getElementById("mask").textContent = page.mask
document.getElementById("sizes").textContent = `B=${B} H=${H} q_len=${q_len} kv_len=${kv_len}: a row for each query, a column for each key`
addEventListener("resize", resize)
resize()
showAll()
const maskmod = {page, view, truth, describe, lookAt, elementAt, get exact() { return exact }, get size() { return [width, height] }} // for a console
