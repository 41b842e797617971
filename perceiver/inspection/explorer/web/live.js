// The panel of a page that is served by a run: a file, another text, or another checkpoint, to be explained.
//
// page.live: checkpoint, checkpoints, endings of files, max_bytes, reads_text, message;
//            bases: for each sample the number of the run's sample that it is made of, or null; texts: its text

const live = { isEdited: false, form: null };

function listenToLive() {
  const { live: served } = page;
  if (!served) return;
  const file = element("input", { id: "live-file", type: "file", accept: served.endings.join(",") });
  const text = element("textarea", { id: "live-text", rows: 2, cols: 40 });
  const options = served.checkpoints.map((name) => element("option", { value: name }, name));
  const checkpoint = element("select", { id: "live-checkpoint" }, ...options);
  checkpoint.value = served.checkpoint;
  const submit = element("button", { id: "live-explain", type: "submit" }, "explain");
  const samples = element("button", { id: "live-samples", type: "button" }, "samples of the run");
  const status = element("span", { id: "live-status", role: "status" }, served.message);
  const label = (name, control, isShown) => isShown && element("label", {}, name, " ", control);
  const parts = [
    label("file", file, true),
    label("text", text, served.reads_text),
    label("checkpoint", checkpoint, served.checkpoints.length > 1),
    submit,
    samples,
    status,
  ];
  live.form = element("form", { id: "live", class: "controls", "aria-label": "explain another input" }, ...parts.filter(Boolean));
  document.querySelector("main").prepend(live.form);
  live.form.addEventListener("keydown", (event) => event.stopPropagation()); // letters are no shortcuts here
  text.addEventListener("input", () => (live.isEdited = true));
  const chosen = () => (served.checkpoints.length > 1 ? checkpoint.value : null);
  live.form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const [upload] = file.files;
    if (upload && upload.size > served.max_bytes) {
      status.textContent = `The file is larger than ${short(served.max_bytes / 2 ** 20)} MB, the limit (serve_megabytes).`;
      return;
    }
    ask({
      checkpoint: chosen(),
      sample: served.bases[state.sample],
      new_text: live.isEdited ? text.value : null,
      file: upload ? { name: upload.name, data: await base64Of(upload) } : null,
    });
  });
  samples.addEventListener("click", () => ask({ checkpoint: chosen() }));
  if (served.message) submit.focus();
}

async function base64Of(file) {
  const reader = new FileReader();
  await new Promise((resolve, reject) => {
    Object.assign(reader, { onload: resolve, onerror: () => reject(reader.error) });
    reader.readAsDataURL(file);
  });
  return reader.result.slice(reader.result.indexOf(",") + 1);
}

// The answer is a page, which replaces this one.
async function ask(question) {
  const status = byId("live-status");
  const buttons = [...live.form.querySelectorAll("button")];
  status.textContent = "Computing…";
  for (const button of buttons) button.disabled = true;
  try {
    const headers = { "Content-Type": "application/json" };
    const response = await fetch("/explain", { method: "POST", headers, body: JSON.stringify(question) });
    if (response.ok) {
      const html = await response.text();
      clearTimeout(hashTimer);
      history.replaceState(null, "", location.pathname);
      document.open();
      document.write(html);
      document.close();
      return;
    }
    status.textContent = (await response.json()).error;
  } catch (error) {
    status.textContent = `The server does not answer: ${error.message}`;
  }
  for (const button of buttons) button.disabled = false;
}

function renderLive() {
  if (page.live && !live.isEdited) {
    const text = byId("live-text");
    if (text) text.value = page.live.texts[state.sample] ?? "";
  }
}
