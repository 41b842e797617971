// What the model sees and predicts of an input, beside the input itself.

const MAX_VERSION_HEIGHT = 160;

// The input and its versions side by side, or below each other if they are wide; null without versions.
function versionsOf({ name, description }) {
  if (!description.versions.length) return null;
  const all = [{ name: "input", picture: description.picture, sound: null }, ...description.versions];
  const frames = numFrames(description);
  const images = [];
  const figures = all.map((version) => {
    const image = version.picture && element("img", { src: version.picture, alt: `${name}: ${version.name}` });
    if (image) images.push(image);
    const sound = version.sound && element("audio", { controls: true, src: version.sound, "aria-label": version.name });
    const window = image && element("div", { class: "window" }, image);
    return element("figure", {}, window, sound, element("figcaption", {}, version.name));
  });
  const [width, height] = description.size;
  const shape = (columns) => `--width:${(MAX_VERSION_HEIGHT * width) / columns / height}px`;
  const node = element("div", { class: "versions" }, ...figures);
  const showFrame = (frame) => {
    node.style.cssText = shape(frame === null ? 1 : frames);
    for (const { style } of images) {
      style.width = frame === null ? "100%" : `${100 * frames}%`;
      style.marginLeft = frame === null ? "0" : `${-100 * frame}%`;
    }
  };
  showFrame(null);
  return { node, showFrame };
}
