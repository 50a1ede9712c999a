document.querySelectorAll("[data-slider]").forEach((box) => {
  const control = box.querySelector(".control");
  const input = control.querySelector("input");
  const output = control.querySelector("output");
  const frames = [...box.querySelectorAll(".frames > li")];
  const show = () => {
    const chosen = Number(input.value);
    frames.forEach((frame, index) => { frame.hidden = index !== chosen; });
    const caption = frames[chosen].querySelector("figcaption").textContent;
    output.textContent = `${chosen + 1} of ${frames.length}`;
    input.setAttribute("aria-valuetext", caption);
  };
  control.hidden = false;
  input.addEventListener("input", show);
  show();
});
