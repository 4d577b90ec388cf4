# shellcheck shell=bash
# Chromium, driven by the W3C WebDriver protocol (chromedriver). Tests start a
# session of their own each; no window, no sandbox (it runs in a chroot as a
# user of its own already), and only loopback is asked for anything.

BROWSER_PORT=$(port 94)

browser_install() { deb_install chromium chromium-driver fonts-dejavu-core; }

browser_start() {
  mkdir -p "$SERVICES_STATE/browser/data"
  deb_spawn browser chromedriver --port="$BROWSER_PORT" --allowed-ips=127.0.0.1
}

browser_wait() { wait_tcp browser "$BROWSER_PORT" 20; }

browser_env() { echo "export TEST_WEBDRIVER_URL='http://127.0.0.1:$BROWSER_PORT'"; }
