/** The visible part of the map. */

const MARGIN = 14;
const MAX_SCALE = 12;

/** Converts coordinates of items to pixels. */
export class Camera {
  constructor() {
    this.bounds = { left: -1, right: 1, low: -1, high: 1 };
    this.reset();
  }

  /** Show the whole map. */
  reset() {
    this.scale = 1;
    this.centre = [0.5, 0.5];
  }

  /** Set the bounds of the map to those of some items. */
  fit(items) {
    if (!items.length) return;
    const xs = items.map((item) => item.x);
    const ys = items.map((item) => item.y);
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    // Items at a single point are shown in the middle.
    const wide = right > left ? 0 : 1;
    const tall = high > low ? 0 : 1;
    this.bounds = { left: left - wide, right: right + wide, low: low - tall, high: high + tall };
  }

  /** Return the pixels of an item, from the upper left corner. */
  place(item, { width, height }) {
    const [u, v] = this.#share(item);
    return [
      MARGIN + ((u - this.centre[0]) * this.scale + 0.5) * (width - 2 * MARGIN),
      MARGIN + ((v - this.centre[1]) * this.scale + 0.5) * (height - 2 * MARGIN),
    ];
  }

  /** Zoom by a factor, around an item if one is given. */
  zoom(factor, item) {
    this.scale = Math.min(MAX_SCALE, Math.max(1, this.scale * factor));
    if (item) this.centre = this.#share(item);
    this.#keepInside();
  }

  /** Move the visible part by some pixels. */
  move(dx, dy, { width, height }) {
    this.centre = [
      this.centre[0] - dx / this.scale / (width - 2 * MARGIN),
      this.centre[1] - dy / this.scale / (height - 2 * MARGIN),
    ];
    this.#keepInside();
  }

  #share({ x, y }) {
    const { left, right, low, high } = this.bounds;
    return [(x - left) / (right - left), (high - y) / (high - low)];
  }

  #keepInside() {
    const half = 0.5 / this.scale;
    this.centre = this.centre.map((middle) => Math.min(1 - half, Math.max(half, middle)));
  }
}
