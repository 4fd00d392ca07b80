#!/usr/bin/env bash
# Finds or installs the Chromium that the browser tests drive. Never fails: those tests skip without one.
set -uo pipefail

[ -x "${CHROMIUM:-/usr/bin/chromium}" ] && exit 0
if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
  echo "Installing Chromium for the browser tests."
  apt-get update -qq >/dev/null 2>&1
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null 2>&1 && exit 0
fi
echo "Chromium could not be installed: the browser tests will skip (set CHROMIUM to one you have)."
