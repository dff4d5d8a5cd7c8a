/** Which part of the map is seen. */

const MARGIN = 14;
const CLOSEST = 12;

/** From coordinates of items to pixels. */
export class Camera {
  constructor() {
    this.bounds = { left: -1, right: 1, low: -1, high: 1 };
    this.reset();
  }

  /** See the whole. */
  reset() {
    this.scale = 1;
    this.centre = [0.5, 0.5];
  }

  /** Let the whole be where these items are. */
  fit(items) {
    if (!items.length) return;
    const xs = items.map((item) => item.x);
    const ys = items.map((item) => item.y);
    const [left, right, low, high] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    // Items that all lie at one place are shown in the middle.
    const wide = right > left ? 0 : 1;
    const tall = high > low ? 0 : 1;
    this.bounds = { left: left - wide, right: right + wide, low: low - tall, high: high + tall };
  }

  /** Pixels of an item, from the upper left corner. */
  place(item, { width, height }) {
    const [u, v] = this.#share(item);
    return [
      MARGIN + ((u - this.centre[0]) * this.scale + 0.5) * (width - 2 * MARGIN),
      MARGIN + ((v - this.centre[1]) * this.scale + 0.5) * (height - 2 * MARGIN),
    ];
  }

  /** Look closer by a factor, around an item where there is one. */
  zoom(factor, item) {
    this.scale = Math.min(CLOSEST, Math.max(1, this.scale * factor));
    if (item) this.centre = this.#share(item);
    this.#keepInside();
  }

  /** Move what is seen by so many pixels. */
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
