// A page of another origin, in a frame: it opens the socket that it is asked for and tells how that ended.
const ours = ["http://127.0.0.1", "http://localhost"].map((origin) => `${origin}:${location.port}`);

addEventListener("message", ({ data, origin, source }) => {
  if (source !== parent || !ours.includes(origin)) return;
  const tell = (what) => source.postMessage(what, origin);
  const socket = new WebSocket(data.url, data.protocols);
  socket.onmessage = () => {
    socket.onclose = null;
    socket.close(1000);
    tell({ let: "in" });
  };
  socket.onclose = ({ code, reason }) => tell({ code, label: reason });
});
parent.postMessage({ ready: true }, "*");
