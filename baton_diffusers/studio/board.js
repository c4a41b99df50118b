// The studio's board: viewer, timeline and history of a clip. Gradio gives `element`, `trigger`, `props` and `watch`.
// `props.value` is what `Session.view` returns. What is done here leaves as events: "edit", "live", "go", "retake".

const MIN_PICTURE = 52 // pixels of a picture in the strip
const LIVE_PAUSE = 120 // milliseconds between drafts

const make = (tag, attributes = {}, ...children) => {
  const node = document.createElement(tag)
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [type, listener] of Object.entries(value)) node.addEventListener(type, listener)
    else if (name === "text") node.textContent = value
    else if (value === true) node.setAttribute(name, "")
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value)
  }
  node.append(...children)
  return node
}
const find = (selector) => element.querySelector(selector)
const seconds = (value) => `${value.toFixed(2)} s`
const address = (key) => new URL(`clips/${encodeURIComponent(key)}`, document.baseURI).href

let view = props.value || {}
let sheet = null // the timeline, as the person sees it
let selected = null // number of a cue
let span = null // [start, end] in seconds
let compared = null // number of the version beside the current one
let playing = false
let position = 0
let heard = "a"
let started = 0
let drafted = 0
let edits = 0 // that were sent
let grabbed = false
let isLate = false // whether a view has come that is not shown yet

const step = () => (view.timestamp_rate ? 1 / view.timestamp_rate : 0.05)
const snap = (time) => {
  const last = Math.ceil(view.duration / step() - 1e-6) - 1
  return Math.min(Math.max(Math.round(time / step()), 0), last) * step()
}
const percent = (time) => `${(100 * time) / view.duration}%`
const say = (words) => (find(".baton-said").textContent = words)
const actorOf = (text) => {
  const names = (sheet?.cast || []).map((member) => member.name)
  return names.filter((name) => `${text} `.startsWith(`${name} `)).sort((a, b) => b.length - a.length)[0] || null
}
const deedOf = (text) => text.slice((actorOf(text) || "").length).trim()

// The colour that an actor's name tells, as "red ball" does
const colourOf = (name) => (name || "").split(" ").find((word) => CSS.supports("color", word) && !/^(inherit|initial|unset)$/.test(word)) || null

// What the page sends along with its buttons
window.batonStudio = {
  attempts: 0, // renders that this page has asked for
  attempt: () => {
    window.batonStudio.attempts += 1
    document.body.classList.add("baton-busy")
  },
  page: () =>
    JSON.stringify({
      session: view.session || null,
      version: view.version ?? null,
      sheet,
      span,
      attempt: window.batonStudio.attempts,
      modality: find(".baton-modality").value || null,
      actor: find(".baton-actor").value || null,
    }),
}
const send = (type, data) => trigger(type, { ...data, page: window.batonStudio.page() })

// Viewer

const media = (side) => find(`.baton-pane[data-side="${side}"] video`)
const versionOf = (side) => {
  const number = side === "a" ? view.version : compared
  return (view.versions || []).find((version) => version.number === number)
}

function showPane(side) {
  const pane = find(`.baton-pane[data-side="${side}"]`)
  const version = versionOf(side)
  pane.hidden = side === "b" && !version
  const video = pane.querySelector("video")
  const source = version?.clip ? address(version.clip) : null
  if (source !== video.dataset.source) {
    video.dataset.source = source || ""
    if (source) video.src = source
    else {
      video.removeAttribute("src")
      video.load()
    }
  }
  video.hidden = !source
  pane.querySelector("img").hidden = Boolean(source) || side === "b"
  pane.querySelector("figcaption").textContent = version ? `${version.number}. ${version.what}` : ""
}

function showStill() {
  const pictures = view.pictures || []
  const still = find('.baton-pane[data-side="a"] img')
  const shown = pictures.filter((picture) => picture.time <= position + 1e-6).pop() || pictures[0]
  still.alt = shown ? `Preview at ${seconds(position)}` : ""
  if (shown) still.src = shown.src
  else still.removeAttribute("src")
  find(".baton-empty").hidden = Boolean(shown) || Boolean(versionOf("a")?.clip)
  find(".baton-empty").textContent = !view.version
    ? "Nothing to see yet"
    : view.has_decoder
      ? ""
      : "No storyboard: this checkpoint has no plan decoder (examples/nano/plan_decoders.py trains one). Press Render to see the clip."
}

function clock() {
  if (!playing) return
  const [video, other] = [media("a"), media("b")]
  const player = !video.hidden ? video : view.files?.sound ? find("audio") : null
  position = player ? player.currentTime : (performance.now() - started) / 1000
  if (player === video && !other.hidden) {
    const ahead = other.currentTime - position // the other one is led to the same time
    if (Math.abs(ahead) > 0.25) other.currentTime = position
    other.playbackRate = Math.abs(ahead) > 0.02 ? 1 - Math.max(-0.3, Math.min(0.3, 2 * ahead)) : 1
  }
  if (player ? player.ended : position >= view.duration) {
    seek(0)
    play()
    return
  }
  showPosition()
  requestAnimationFrame(clock)
}

function showPosition() {
  find(".baton-playhead").style.left = percent(Math.min(position, view.duration))
  const slider = find(".baton-position")
  slider.value = position
  slider.setAttribute("aria-valuetext", `${seconds(position)} of ${seconds(view.duration || 0)}`)
  find(".baton-time").textContent = `${position.toFixed(2)} / ${seconds(view.duration || 0)}`
  showStill()
}

function seek(time) {
  position = Math.min(Math.max(time, 0), view.duration || 0)
  started = performance.now() - 1000 * position
  for (const player of [media("a"), media("b"), find("audio")]) if (player.currentSrc) player.currentTime = position
  showPosition()
}

function play() {
  playing = true
  const clips = ["a", "b"].filter((side) => !media(side).hidden && !find(`[data-side="${side}"]`).hidden)
  for (const side of clips) {
    media(side).currentTime = position
    media(side).muted = side !== (clips.includes(heard) ? heard : "a")
    media(side).play().catch(() => {})
  }
  if (media("a").hidden && view.files?.sound) {
    find("audio").currentTime = position
    find("audio").play().catch(() => {})
  }
  started = performance.now() - 1000 * position
  find(".baton-play").textContent = "Pause"
  requestAnimationFrame(clock)
}

function playFrom(time) {
  seek(time)
  play()
}

function pause() {
  playing = false
  for (const player of [media("a"), media("b"), find("audio")]) player.pause()
  find(".baton-play").textContent = "Play"
}

// Timeline

function showRuler() {
  const ruler = find(".baton-ruler")
  ruler.querySelectorAll(".baton-tick").forEach((tick) => tick.remove())
  const pace = view.duration > 20 ? 5 : view.duration > 8 ? 1 : 0.5
  for (let time = 0; time < view.duration - pace / 4; time += pace)
    ruler.append(make("span", { class: "baton-tick", style: `left:${percent(time)}`, text: time.toFixed(pace < 1 ? 1 : 0) }))
}

function showStrip(pictures) {
  const strip = find(".baton-strip")
  const number = Math.max(1, Math.min(pictures.length, Math.floor(strip.clientWidth / MIN_PICTURE)))
  const chosen = Array.from({ length: number }, (_, i) => pictures[Math.floor(((i + 0.5) * pictures.length) / number)])
  strip.replaceChildren(
    ...chosen.filter(Boolean).map((picture) => make("img", { src: picture.src, alt: "", draggable: "false" }))
  )
  strip.classList.toggle("baton-bare", !pictures.length)
  strip.setAttribute("aria-label", pictures.length ? `Storyboard of ${number} pictures` : "No storyboard yet")
}

function showWave(peaks) {
  const path = peaks.map((peak, i) => `M${i} ${50 - 46 * peak}V${50 + 46 * peak}`).join("")
  const svg = find(".baton-wave svg")
  svg.setAttribute("viewBox", `-0.5 0 ${Math.max(peaks.length, 1)} 100`)
  svg.querySelector("path").setAttribute("d", path)
  find(".baton-wave").hidden = !peaks.length
}

function showLanes() {
  const lanes = find(".baton-lanes")
  const focused = lanes.contains(document.activeElement) ? document.activeElement.dataset.cue : null
  const names = (sheet?.cast || []).map((member) => member.name)
  const rows = names.map((name, i) => ({ name, member: sheet.cast[i], number: i }))
  if (sheet && sheet.cues.some((cue) => !actorOf(cue.text))) rows.push({ name: null })
  lanes.replaceChildren(...rows.map(showLane))
  find(".baton-tools").hidden = !sheet
  find(".baton-live").parentElement.hidden = !view.has_student
  find(".baton-hint").textContent = sheet
    ? "Drag an event, or focus it: arrow keys move it, Shift moves it further, Enter changes its words, Delete removes it. Drag on the ruler to mark a span."
    : view.version
      ? "This plan has no cues: it can be rendered and retaken, but not moved about. Write what happens in the prompt and plan it."
      : "Write a prompt and press Plan: what happens when appears here."
  if (focused !== null) lanes.querySelector(`[data-cue="${focused}"]`)?.focus({ preventScroll: true })
  showEditor()
}

function showLane({ name, member, number }) {
  const colour = colourOf(name)
  const lane = make("div", {
    class: "baton-lane",
    role: "group",
    "aria-label": name || "Other events",
    style: colour && `--actor:${colour}`,
  })
  const label = make("div", { class: "baton-label" })
  if (!member) label.append(make("span", { class: "baton-name", text: "other" }))
  else {
    const title = make("input", { class: "baton-name", type: "text", value: name, maxlength: 200, "aria-label": `Name of ${name || "the new actor"}` })
    title.addEventListener("change", () => rename(number, title.value.trim()))
    title.addEventListener("keydown", (event) => event.key === "Enter" && title.blur())
    label.append(title)
    const places = view.places.includes(member.place) ? view.places : [member.place, ...view.places]
    const choice = make("select", { "aria-label": `Place of ${name}` })
    choice.append(...places.map((place) => make("option", { value: place, text: place, selected: place === member.place })))
    choice.addEventListener("change", () => {
      const other = sheet.cast.find((one) => one.place === choice.value)
      if (other) other.place = member.place
      sheet.cast[number].place = choice.value
      commit(other ? `swapped ${name} and ${other.name}` : `${name} to the ${choice.value}`)
    })
    label.append(choice)
  }
  const track = make("div", { class: "baton-track" })
  const own = sheet.cues.map((cue, i) => ({ cue, i })).filter(({ cue }) => actorOf(cue.text) === name)
  own.forEach(({ cue, i }, k) => {
    const end = k + 1 < own.length ? own[k + 1].cue.time : view.duration
    track.append(showCue(cue, i, Math.max(Math.min(end - cue.time, 0.7), step())))
  })
  lane.append(label, track)
  return lane
}

function showCue(cue, i, length) {
  const chip = make("div", {
    class: `baton-cue${i === selected ? " baton-selected" : ""}`,
    role: "slider",
    tabindex: "0",
    "data-cue": i,
    "aria-label": cue.text,
    "aria-valuemin": "0",
    "aria-valuemax": view.duration.toFixed(2),
    "aria-valuenow": cue.time.toFixed(2),
    "aria-valuetext": seconds(cue.time),
    "aria-describedby": "baton-hint",
    title: `${cue.text}, ${seconds(cue.time)}`,
    style: `left:${percent(cue.time)};width:${percent(length)}`,
    on: {
      keydown: (event) => onKey(event, i),
      focus: () => select(i),
      pointerdown: (event) => onGrab(event, i, chip),
      dblclick: () => find(".baton-words").focus(),
    },
  })
  chip.append(make("span", { text: deedOf(cue.text) || cue.text }))
  return chip
}

function select(i) {
  selected = i
  element.querySelectorAll(".baton-cue").forEach((chip) => chip.classList.toggle("baton-selected", Number(chip.dataset.cue) === i))
  showEditor()
}

function showEditor() {
  const cue = selected === null ? null : sheet?.cues[selected]
  const editor = find(".baton-editor")
  editor.disabled = !cue
  find(".baton-words").value = cue ? cue.text : ""
  find(".baton-when").value = cue ? cue.time.toFixed(2) : ""
  find(".baton-when").step = step()
}

function commit(what) {
  const cue = selected === null ? null : sheet.cues[selected]
  sheet.cues.sort((a, b) => a.time - b.time)
  if (cue) selected = sheet.cues.indexOf(cue)
  showLanes()
  say(what)
  const redraws = find(".baton-live").checked
  if (redraws) window.batonStudio.attempt()
  send(redraws ? "redraw" : "edit", { what, edit: ++edits })
}

function rename(number, name) {
  const before = sheet.cast[number].name
  if (name === before) return
  if (!name) {
    sheet.cast.splice(number, 1)
    sheet.cues = sheet.cues.filter((cue) => !before || !` ${cue.text} `.includes(` ${before} `))
    selected = null
    if (!before) return showLanes()
    return commit(`removed ${before}`)
  }
  sheet.cast[number].name = name
  if (before) for (const cue of sheet.cues) cue.text = ` ${cue.text} `.replaceAll(` ${before} `, ` ${name} `).trim()
  commit(before ? `${before} is now ${name}` : `added ${name}`)
}

function moveTo(i, time, isDone) {
  const cue = sheet.cues[i]
  const moved = snap(time)
  if (Math.abs(moved - cue.time) > 1e-9) cue.time = moved
  if (isDone) commit(`moved ${cue.text} to ${seconds(moved)}`)
}

function remove(i) {
  const [cue] = sheet.cues.splice(i, 1)
  selected = null
  commit(`deleted ${cue.text}`)
}

function duplicate(i) {
  const cue = sheet.cues[i]
  sheet.cues.push({ ...cue, time: snap(cue.time + 0.5) })
  commit(`repeated ${cue.text}`)
}

let waiting = null
function onKey(event, i) {
  const by = event.shiftKey ? 4 : 1
  const moves = { ArrowLeft: -by, ArrowRight: by, ArrowDown: -by, ArrowUp: by, PageDown: -8, PageUp: 8 }
  const cue = sheet.cues[i]
  let time = null
  if (event.key in moves) time = cue.time + moves[event.key] * step()
  else if (event.key === "Home") time = 0
  else if (event.key === "End") time = view.duration
  else if (event.key === "Delete" || event.key === "Backspace") remove(i)
  else if (event.key === "Enter") find(".baton-words").focus()
  else if (event.key.toLowerCase() === "d" && (event.ctrlKey || event.metaKey)) duplicate(i)
  else return
  event.preventDefault()
  if (time === null) return
  moveTo(i, time, false)
  showLanes()
  say(`${cue.text}, ${seconds(cue.time)}`)
  clearTimeout(waiting) // several presses are one edit
  waiting = setTimeout(() => commit(`moved ${cue.text} to ${seconds(cue.time)}`), 450)
}

function onGrab(event, i, chip) {
  if (event.button) return
  event.preventDefault()
  chip.focus({ preventScroll: true })
  chip.setPointerCapture(event.pointerId)
  grabbed = true
  const track = chip.parentElement.getBoundingClientRect()
  const cue = sheet.cues[i]
  const [from, before] = [event.clientX, cue.time]
  const onMove = (move) => {
    moveTo(i, before + ((move.clientX - from) / track.width) * view.duration, false)
    chip.style.left = percent(cue.time)
    chip.setAttribute("aria-valuenow", cue.time.toFixed(2))
    chip.setAttribute("aria-valuetext", seconds(cue.time))
    find(".baton-when").value = cue.time.toFixed(2)
    const draws = find(".baton-live").checked
    if ((draws || view.has_decoder) && performance.now() > drafted + LIVE_PAUSE) {
      drafted = performance.now()
      send("live", { draws })
    }
  }
  const onDrop = () => {
    chip.removeEventListener("pointermove", onMove)
    chip.removeEventListener("pointerup", onDrop)
    chip.removeEventListener("pointercancel", onDrop)
    grabbed = false
    if (cue.time === before && isLate) show()
    if (cue.time !== before) commit(`moved ${cue.text} to ${seconds(cue.time)}`)
  }
  chip.addEventListener("pointermove", onMove)
  chip.addEventListener("pointerup", onDrop)
  chip.addEventListener("pointercancel", onDrop)
}

function setSpan(start, end) {
  span = start === null || end - start < step() / 2 ? null : [start, end]
  const mark = find(".baton-span")
  mark.hidden = !span
  if (span) {
    mark.style.left = percent(start)
    mark.style.width = percent(end - start)
  }
  const [from, to] = [find(".baton-from"), find(".baton-to")]
  find(".baton-marks").hidden = !view.can_retake
  find(".baton-retake").disabled = !span
  from.value = span ? start.toFixed(2) : ""
  to.value = span ? end.toFixed(2) : ""
}

function onRuler(event) {
  if (event.button || !view.version) return
  const ruler = find(".baton-ruler")
  const box = ruler.getBoundingClientRect()
  const timeAt = (move) => Math.min(Math.max(((move.clientX - box.left) / box.width) * view.duration, 0), view.duration)
  const round = (time) => Math.round(time / step()) * step()
  const start = timeAt(event)
  ruler.setPointerCapture(event.pointerId)
  seek(start)
  const onMove = (move) => setSpan(Math.max(round(Math.min(start, timeAt(move))), 0), Math.min(round(Math.max(start, timeAt(move))), view.duration))
  const onDrop = () => {
    ruler.removeEventListener("pointermove", onMove)
    ruler.removeEventListener("pointerup", onDrop)
    if (span) say(`marked ${seconds(span[0])} to ${seconds(span[1])}`)
  }
  ruler.addEventListener("pointermove", onMove)
  ruler.addEventListener("pointerup", onDrop)
}

// History and files

function showHistory() {
  const list = find(".baton-versions")
  list.replaceChildren(
    ...(view.versions || []).map((version) => {
      const isCurrent = version.number === view.version
      const go = make("button", {
        class: "baton-go",
        type: "button",
        "aria-current": isCurrent ? "true" : null,
        on: { click: () => send("go", { number: version.number }) },
      })
      go.append(make("span", { class: "baton-number", text: version.number }), make("span", { text: version.what }))
      const item = make("li", { class: isCurrent ? "baton-current" : "" }, go)
      if (version.clip && !isCurrent) {
        const isCompared = version.number === compared
        item.append(
          make("button", {
            class: "baton-compare",
            type: "button",
            "aria-pressed": String(isCompared),
            "aria-label": `Compare with version ${version.number}`,
            text: isCompared ? "beside" : "compare",
            on: {
              click: () => {
                compared = isCompared ? null : version.number
                show()
              },
            },
          })
        )
      }
      return item
    })
  )
  list.querySelector(".baton-current")?.scrollIntoView({ block: "nearest" })
  find(".baton-history p").hidden = Boolean(view.versions?.length)
  find(".baton-heard").hidden = compared === null
  const names = { clip: "Clip (mp4)", plan: "Plan", script: "Python" }
  find(".baton-files").replaceChildren(
    ...Object.entries(names)
      .filter(([kind]) => view.files?.[kind])
      .map(([kind, name]) => make("a", { href: address(view.files[kind]), download: "", "data-kind": kind, text: name }))
  )
}

const scoreOf = (plan) => plan.score.toFixed(1).replace(/^-0\.0$/, "0")

function drawSheet({ cast, cues }) {
  const rows = cast.map((member) => member.name)
  const rowOf = (text) => Math.max(rows.findIndex((name) => text.startsWith(`${name} `)), 0)
  const marks = cues.map((cue) => {
    const row = rowOf(cue.text)
    const colour = colourOf(rows[row]) || "var(--accent)"
    const top = (24 * row) / Math.max(rows.length, 1) + 1
    return `<rect x="${(96 * cue.time) / view.duration}" y="${top}" width="7" height="${24 / Math.max(rows.length, 1) - 2}" rx="2" fill="${colour}"/>`
  })
  const svg = make("span", {})
  svg.innerHTML = `<svg viewBox="0 0 100 24" preserveAspectRatio="none" aria-hidden="true">${marks.join("")}</svg>`
  return svg.firstChild
}

function showDrawn() {
  const drawn = view.drawn || []
  find(".baton-drawn").hidden = !drawn.length
  find(".baton-drawn ol").replaceChildren(
    ...drawn.map((plan, number) => {
      const choose = make("button", {
        type: "button",
        "aria-pressed": String(plan.is_taken),
        "aria-label": `Plan ${number + 1}, score ${plan.score === null ? "unknown" : scoreOf(plan)}`,
        on: { click: () => send("choose", { number }) },
      })
      choose.append(drawSheet(plan.sheet), make("span", { class: "baton-score", text: plan.score === null ? "" : scoreOf(plan) }))
      return make("li", {}, choose)
    })
  )
}

function showActors() {
  const actor = find(".baton-actor")
  const names = (sheet?.cast || []).map((member) => member.name)
  const chosen = names.includes(actor.value) ? actor.value : ""
  actor.replaceChildren(
    make("option", { value: "", text: "everyone" }),
    ...names.map((name) => make("option", { value: name, text: name }))
  )
  actor.value = chosen
  actor.parentElement.hidden = !names.length
}

function showMessage() {
  const note = find(".baton-note")
  note.textContent = view.note || ""
  note.hidden = !view.note
}

// The whole

function show() {
  isLate = false
  sheet = view.sheet ? structuredClone(view.sheet) : null
  if (selected !== null && !sheet?.cues[selected]) selected = null
  if (compared !== null && (!versionOf("b")?.clip || compared === view.version)) compared = null
  const sound = view.files?.sound ? address(view.files.sound) : ""
  const audio = find("audio")
  if (audio.dataset.source !== sound) {
    audio.dataset.source = sound
    if (sound) audio.src = sound
    else audio.removeAttribute("src")
  }
  // After a restart or a reload, the page begins with this.
  if (view.version)
    sessionStorage.setItem(
      "baton-studio",
      JSON.stringify({
        prompt: view.prompt,
        seed: view.seed,
        seconds: view.seconds,
        width: view.width,
        height: view.height,
        page: window.batonStudio.page(),
      })
    )
  find(".baton-position").max = view.duration || 1
  find(".baton-canvas").style.minWidth = `${Math.min(100 * (view.duration || 0), 20000)}px`
  find(".baton-play").disabled = !view.version
  find(".baton-position").disabled = !view.version
  find(".baton-timeline").dataset.version = view.version ?? ""
  showPane("a")
  showPane("b")
  showRuler()
  showStrip(view.pictures || [])
  showWave(view.peaks || [])
  showLanes()
  document.body.classList.toggle("baton-planned", Boolean(view.version))
  for (const [name, can] of [["undo", view.can_undo], ["redo", view.can_redo]]) {
    const button = document.getElementById(`baton-${name}`) // not there yet when the page begins
    if (button) button.disabled = !can
  }
  showActors()
  showHistory()
  showDrawn()
  showMessage()
  if (view.span) span = view.span
  setSpan(...(span && span[1] <= view.duration + 1e-6 ? span : [null, null]))
  seek(Math.min(position, view.duration || 0))
}

find(".baton-play").addEventListener("click", () => (playing ? pause() : play()))
find(".baton-position").addEventListener("input", (event) => seek(Number(event.target.value)))
find(".baton-ruler").addEventListener("pointerdown", onRuler)
find(".baton-hear").addEventListener("change", (event) => {
  heard = event.target.value
  for (const side of ["a", "b"]) media(side).muted = side !== heard
})
find(".baton-words").addEventListener("keydown", (event) => event.key === "Enter" && event.target.blur())
find(".baton-words").addEventListener("change", (event) => {
  const cue = sheet.cues[selected]
  cue.text = event.target.value
  commit(`now ${cue.text}`)
})
find(".baton-when").addEventListener("change", (event) => moveTo(selected, Number(event.target.value), true))
find(".baton-delete").addEventListener("click", () => remove(selected))
find(".baton-duplicate").addEventListener("click", () => duplicate(selected))
find(".baton-add").addEventListener("click", () => {
  const name = sheet.cast[0]?.name
  const model = sheet.cues.find((cue) => actorOf(cue.text) === name)
  sheet.cues.push({ time: snap(position), text: model ? model.text : `${name || "something"} happens` })
  selected = sheet.cues.length - 1
  commit(`added ${sheet.cues[selected].text}`)
})
find(".baton-enter").addEventListener("click", () => {
  const taken = sheet.cast.map((member) => member.place)
  sheet.cast.push({ name: "", place: view.places.find((place) => !taken.includes(place)) || "middle" })
  showLanes()
  find(".baton-lanes").lastElementChild.querySelector("input").focus()
})
find(".baton-retake").addEventListener("click", () => {
  if (!span) return say("Mark a span first: drag on the ruler, or write its seconds.")
  window.batonStudio.attempt()
  send("retake", {})
})
for (const side of ["from", "to"])
  find(`.baton-${side}`).addEventListener("change", () => {
    const [from, to] = [find(".baton-from").value, find(".baton-to").value]
    if (from !== "" && to !== "") setSpan(Math.max(Number(from), 0), Math.min(Number(to), view.duration))
  })
find(".baton-nowhere").addEventListener("click", () => setSpan(null, null))
element.addEventListener("baton-drafted", (event) => showStrip(event.detail))

watch("value", () => {
  const before = view.version
  if (props.value?.edit < edits) return // the answer to a later edit is on its way
  view = props.value || {}
  isLate = grabbed
  if (grabbed) return
  if (view.version !== before && playing) pause()
  show()
  if (view.version !== before && view.edit && view.files?.clip) playFrom(view.span?.[0] ?? 0) // what was just redrawn
})
new ResizeObserver(() => showStrip(view.pictures || [])).observe(find(".baton-strip"))
show()
