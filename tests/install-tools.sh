#!/usr/bin/env bash
# The programs that some tests start for real: PostgreSQL, Chromium with its driver, curl. Where they are missing and we
# may install them (root on Debian or Ubuntu), this does; elsewhere those tests are skipped and say which package they want.
set -u
missing=()
ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || missing+=(postgresql)
{ command -v chromium && command -v chromedriver; } >/dev/null 2>&1 || missing+=(chromium chromium-driver)
command -v curl >/dev/null 2>&1 || missing+=(curl)
[ ${#missing[@]} -eq 0 ] && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
  echo "installing for the tests: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq && apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
else
  echo "not installed, their tests are skipped: ${missing[*]}"
fi
exit 0
