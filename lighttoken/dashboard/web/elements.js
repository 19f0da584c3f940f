"use strict";
// Text of a record reaches the page through textContent or, in charts, with its markup escaped.

const $ = (selector, parent = document) => parent.querySelector(selector);
const make = (tag, properties = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
};
const escaped = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");

// ---- numbers as text; a missing number is an empty text
const fixed = (digits) => (value) => (value == null ? "" : value.toFixed(digits));
const whole = (value) => (value == null ? "" : Math.round(value).toLocaleString("en-US"));
const bytes = (value) =>
  value == null ? "" : value >= 1e5 ? `${(value / 1e6).toFixed(2)} MB` : `${(value / 1e3).toFixed(1)} kB`;
const change = (before, after) => (before && after ? `${bytes(before)} → ${bytes(after)}` : bytes(before || null));
const ratioText = (value) => (value == null ? "" : String(+value.toFixed(2)));
const shortNumber = (value) => (typeof value === "number" ? +value.toPrecision(5) : value);

// ---- values that survive a reload; a browser may forbid the storage for pages from disk
const memory = {
  get(name, storage = "sessionStorage") {
    try { return JSON.parse(window[storage].getItem(`lighttoken.${name}`)); } catch { return null; }
  },
  set(name, value, storage = "sessionStorage") {
    try { window[storage].setItem(`lighttoken.${name}`, JSON.stringify(value)); } catch { /* it is lost */ }
  },
};

// ---- theme: the system's until the reader chooses one
const root = document.documentElement;
const systemDark = matchMedia("(prefers-color-scheme: dark)");
let printing = false; // paper is white
const isDark = () => !printing && (root.dataset.theme ? root.dataset.theme === "dark" : systemDark.matches);
const colourOf = (colour) => (colour === "ink" ? (isDark() ? "#e6e9ee" : "#1b1f24") : colour);
