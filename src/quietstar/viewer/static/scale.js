// The scales that measures are coloured by, as in quietstar/record/scale.py: absolute, so that a colour is one size
// in every run. A value has the step of the largest bound it reaches, 0 below the first and within the noise floor.

export const BOUNDS = {
  kl: [0.0001, 0.001, 0.01, 0.1, 1],
  weight: [0.01, 0.03, 0.1, 0.3, 1],
  gain: [0.001, 0.01, 0.1, 0.5, 2],
  entropy: [0.1, 0.5, 1, 2, 4],
  surprise: [0.1, 0.5, 1, 2, 4],
};

export const STEPS = 5;

export function step(measure, value, floor = null) {
  if (value === null || Number.isNaN(value) || (floor !== null && Math.abs(value) <= floor)) return 0;
  return BOUNDS[measure].filter((bound) => Math.abs(value) >= bound).length;
}
