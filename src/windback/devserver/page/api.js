// Calls of the control plane under /_dev, which docs/dev-server.md describes.

export class Refused extends Error {
  constructor(status, body) {
    super(body.error || `the server answered ${status}`);
    this.status = status;
    this.body = body;
  }
}

export async function call(method, path, body) {
  const options = { method, cache: "no-store" };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers = { "content-type": "application/json" };
  }
  const answer = await fetch(`/_dev${path}`, options);
  const text = await answer.text();
  let value = {};
  try {
    value = text ? JSON.parse(text) : {};
  } catch {
    value = { error: text.slice(0, 200) };
  }
  if (!answer.ok) throw new Refused(answer.status, value);
  return value;
}

export const get = (path, params = {}) => {
  const query = new URLSearchParams(Object.entries(params).filter(([, value]) => value !== "" && value !== undefined && value !== null));
  const text = query.toString();
  return call("GET", text ? `${path}?${text}` : path);
};
