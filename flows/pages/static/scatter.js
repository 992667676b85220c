// Points drawn with WebGL 2, moved and enlarged by pointer, wheel and keys, and looked up in a grid.
//
// A graphics card draws all points in every frame. Where the processor has to (no card, a remote desktop), a frame of many
// points takes too long for that: there the picture, which is larger than what is seen of it, is moved and enlarged as it
// is, and drawn again when the view comes to rest.

const MARGIN = 0.5; // of the picture beyond each edge of what is seen, as a share of its side
const MOST_DOTS = 4096; // per side of the picture, which every graphics card can draw
const FAST_MS = 12; // a drawing that takes less is repeated in every frame
const REST_MS = 120; // without a change of the view
const CELLS = 256; // per side of the grid for lookups
const LARGEST = 2000; // scale

const VERTEX = `#version 300 es
layout(location = 0) in vec2 at;
layout(location = 1) in uint code;
uniform vec2 middle;
uniform vec2 factor;
uniform float size;
uniform vec3 colours[32];
flat out vec3 colour;
void main() {
  gl_Position = vec4((at - middle) * factor, 0.0, 1.0);
  gl_PointSize = size;
  colour = colours[code];
}`;
const FRAGMENT = `#version 300 es
precision highp float;
uniform float size;
flat in vec3 colour;
out vec4 shown;
void main() {
  if (size > 3.0 && distance(gl_PointCoord, vec2(0.5)) > 0.5) discard; // round, where that can be seen
  shown = vec4(colour, 1.0);
}`;

/** A chart of points in [-1, 1]. `onView` is called after each change of the view. */
export class Scatter {
  /** frame: element that shows a part of `canvas`; xy: Float32Array of x and y in turn. Throws without WebGL 2. */
  constructor(frame, canvas, xy, { onView = () => {} } = {}) {
    Object.assign(this, { frame, canvas, xy, onView });
    this.view = { x: 0, y: 0, scale: 1 };
    this.drawn = { ...this.view };
    this.isFast = false;
    this.gl = canvas.getContext("webgl2", { alpha: false, antialias: false, depth: false });
    if (!this.gl) throw new Error("This browser shows no WebGL 2.");
    this.prepare();
    new ResizeObserver(() => this.resize()).observe(frame);
    canvas.addEventListener("webglcontextlost", (event) => event.preventDefault());
    canvas.addEventListener("webglcontextrestored", () => this.prepare() || this.draw());
  }

  get count() {
    return this.xy.length / 2;
  }

  prepare() {
    const gl = this.gl;
    const program = gl.createProgram();
    for (const [kind, source] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
      const shader = gl.createShader(kind);
      gl.shaderSource(shader, source);
      gl.compileShader(shader);
      gl.attachShader(program, shader);
    }
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS)) throw new Error(gl.getProgramInfoLog(program));
    gl.useProgram(program);
    this.at = (name) => gl.getUniformLocation(program, name);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, this.xy, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    this.codes = gl.createBuffer();
    gl.enableVertexAttribArray(1);
    if (this.code) this.colour(this.code, this.colours, this.ground);
  }

  /** Colours the points: code: Uint8Array; colours: up to 32 of [r, g, b] in [0, 1]; ground: the colour behind. */
  colour(code, colours, ground) {
    Object.assign(this, { code, colours, ground });
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, this.codes);
    gl.bufferData(gl.ARRAY_BUFFER, code, gl.STATIC_DRAW);
    gl.vertexAttribIPointer(1, 1, gl.UNSIGNED_BYTE, 0, 0);
    gl.uniform3fv(this.at("colours"), colours.flat());
    gl.clearColor(...ground, 1);
    this.draw();
  }

  resize() {
    const { clientWidth: width, clientHeight: height } = this.frame;
    if (!width || !height) return;
    Object.assign(this, { width, height, unit: Math.min(width, height) / 2 });
    const across = 1 + 2 * MARGIN;
    const dots = Math.min(window.devicePixelRatio || 1, 2, MOST_DOTS / (Math.max(width, height) * across));
    this.canvas.width = Math.round(width * across * dots);
    this.canvas.height = Math.round(height * across * dots);
    Object.assign(this.canvas.style, {
      width: `${width * across}px`, height: `${height * across}px`, left: `${-width * MARGIN}px`, top: `${-height * MARGIN}px`,
    });
    this.draw();
  }

  /** Size of a point in pixels: small where many points share the picture. */
  get pointSize() {
    const area = (this.width * this.height) / Math.max(this.count, 1);
    return Math.max(1, Math.min(6, 0.8 * Math.sqrt(area) * Math.min(this.view.scale, 8) ** 0.4));
  }

  draw() {
    if (!this.width || !this.code) return;
    const { gl, view, canvas } = this;
    const dots = canvas.width / (this.width * (1 + 2 * MARGIN));
    const began = performance.now();
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clear(gl.COLOR_BUFFER_BIT);
    gl.uniform2f(this.at("middle"), view.x, view.y);
    const across = (2 * this.unit * view.scale * dots);
    gl.uniform2f(this.at("factor"), across / canvas.width, across / canvas.height);
    gl.uniform1f(this.at("size"), Math.max(1, this.pointSize * dots));
    gl.drawArrays(gl.POINTS, 0, this.count);
    this.drawn = { ...view };
    canvas.style.transform = "";
    this.measure(began);
  }

  /** Finds out how long a drawing takes, without waiting for it. */
  measure(began) {
    const { gl } = this;
    const fence = gl.fenceSync(gl.SYNC_GPU_COMMANDS_COMPLETE, 0);
    gl.flush();
    const look = () => {
      if (gl.isContextLost()) return;
      if (gl.clientWaitSync(fence, 0, 0) === gl.TIMEOUT_EXPIRED) return void setTimeout(look, 2);
      gl.deleteSync(fence);
      this.isFast = performance.now() - began < FAST_MS;
      this.wasDrawn = true;
      if (!("drawn" in this.frame.dataset)) performance.mark("drawn"); // for benchmarks
      this.frame.dataset.drawn = "";
    };
    setTimeout(look, 0);
  }

  /** Changes the view: x and y of the middle, and the scale. */
  look(change) {
    const view = { ...this.view, ...change };
    view.scale = Math.min(Math.max(view.scale, 0.5), LARGEST);
    view.x = Math.min(Math.max(view.x, -1.5), 1.5);
    view.y = Math.min(Math.max(view.y, -1.5), 1.5);
    this.view = view;
    if (!this.isAsked) {
      this.isAsked = true;
      requestAnimationFrame(() => this.show());
    }
  }

  show() {
    this.isAsked = false;
    clearTimeout(this.rest);
    if (this.isFast) {
      this.draw();
    } else {
      const { view, drawn, unit } = this;
      const x = (drawn.x - view.x) * unit * view.scale, y = (view.y - drawn.y) * unit * view.scale;
      this.canvas.style.transform = `translate(${x}px, ${y}px) scale(${view.scale / drawn.scale})`;
      const isBeyond = Math.abs(x) > MARGIN * this.width || Math.abs(y) > MARGIN * this.height;
      if (isBeyond && this.wasDrawn) {
        this.wasDrawn = false; // once at a time
        this.draw();
      } else {
        this.rest = setTimeout(() => this.draw(), REST_MS);
      }
    }
    this.onView();
  }

  /** Moves the view by pixels of the screen. */
  move(right, down) {
    const step = this.unit * this.view.scale;
    this.look({ x: this.view.x + right / step, y: this.view.y - down / step });
  }

  /** Enlarges by a factor around a place in the frame, in pixels; by default its middle. */
  zoom(factor, left = this.width / 2, top = this.height / 2) {
    const before = this.place(left, top);
    const scale = Math.min(Math.max(this.view.scale * factor, 0.5), LARGEST);
    const step = this.unit * scale;
    this.look({ scale, x: before[0] - (left - this.width / 2) / step, y: before[1] + (top - this.height / 2) / step });
  }

  /** Coordinates of a place in the frame. */
  place(left, top) {
    const step = this.unit * this.view.scale;
    return [this.view.x + (left - this.width / 2) / step, this.view.y - (top - this.height / 2) / step];
  }

  /** The place of coordinates in the frame, in pixels. */
  pixels(x, y) {
    const step = this.unit * this.view.scale;
    return [this.width / 2 + (x - this.view.x) * step, this.height / 2 - (y - this.view.y) * step];
  }

  /** The point nearest to coordinates, within `most` pixels; -1 if there is none. */
  nearest(x, y, most = 24) {
    this.grid ??= new Grid(this.xy);
    return this.grid.nearest(x, y, most / (this.unit * this.view.scale));
  }
}

/** Points sorted into cells, so that a lookup reads a few of them only. */
class Grid {
  constructor(xy) {
    this.xy = xy;
    const count = xy.length / 2, cells = new Uint32Array(count);
    this.starts = new Uint32Array(CELLS * CELLS + 1);
    for (let i = 0; i < count; i++) {
      cells[i] = cellOf(xy[2 * i + 1]) * CELLS + cellOf(xy[2 * i]);
      this.starts[cells[i] + 1]++;
    }
    for (let cell = 0; cell < CELLS * CELLS; cell++) this.starts[cell + 1] += this.starts[cell];
    this.points = new Uint32Array(count);
    const next = this.starts.slice();
    for (let i = 0; i < count; i++) this.points[next[cells[i]]++] = i;
  }

  nearest(x, y, radius) {
    let found = -1, best = radius * radius;
    for (let row = cellOf(y - radius); row <= cellOf(y + radius); row++) {
      const first = this.starts[row * CELLS + cellOf(x - radius)], end = this.starts[row * CELLS + cellOf(x + radius) + 1];
      for (let k = first; k < end; k++) {
        const i = this.points[k], right = this.xy[2 * i] - x, up = this.xy[2 * i + 1] - y;
        const distance = right * right + up * up;
        if (distance <= best) [found, best] = [i, distance];
      }
    }
    return found;
  }
}

function cellOf(value) {
  return Math.min(CELLS - 1, Math.max(0, Math.floor(((value + 1) / 2) * CELLS)));
}
