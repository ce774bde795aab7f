// The line to the board: server-sent events, and what the reader is told about it.

const SILENT_MS = 10000; // the board sends something every 2 s
const RETRY_MS = [500, 1000, 2000, 4000];

/** Keeps a stream open for as long as the page lives; calls back with each event and with what became of the line. */
export class Stream {
  constructor(onEvent, onState) {
    this.onEvent = onEvent;
    this.onState = onState;
    this.failures = 0;
    this.heardAt = performance.now();
    setInterval(() => this.watch(), 1000);
    this.open();
  }

  open() {
    this.source?.close();
    this.source = new EventSource("/api/stream");
    this.heardAt = performance.now();
    for (const kind of ["ward", "change"]) {
      this.source.addEventListener(kind, (event) => this.heard(kind, JSON.parse(event.data)));
    }
    this.source.addEventListener("error", () => this.lost());
  }

  heard(kind, data) {
    this.heardAt = performance.now();
    this.failures = 0;
    this.onState(true);
    this.onEvent(kind, data);
  }

  /** A line that is open and says nothing is as good as lost. */
  watch() {
    if (this.source && performance.now() - this.heardAt > SILENT_MS) this.lost();
  }

  async lost() {
    if (!this.source) return;
    this.source.close();
    this.source = null;
    this.onState(false);
    const wait = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
    this.failures += 1;
    setTimeout(() => this.again(), wait);
  }

  /** Try again; where the board says that nobody is signed in, go and sign in. */
  async again() {
    try {
      const answer = await fetch("/api/session", { cache: "no-store" });
      if (answer.status === 401) location.assign("/sign-in");
    } catch {
      // not there yet; the stream's own failure brings us back
    }
    this.open();
  }
}
