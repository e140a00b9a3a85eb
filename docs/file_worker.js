/* Browsers start no worker from a file, so pages opened as files would have no search: there, a hidden frame is one. */
if (location.protocol === "file:")
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.body.appendChild(document.createElement("iframe"))
      frame.hidden = true
      this.inside = frame.contentWindow
      const write = text => frame.contentDocument.write(text)
      frame.contentDocument.open()
      write("<script>postMessage = data => parent.postMessage(data, '*'); importScripts = () => {}</script>")
      write(`<script src="${url}"></script>`)
      frame.contentDocument.close()
      this.started = new Promise(done => frame.addEventListener("load", done))
      addEventListener("message", event => {
        if (event.source === this.inside) this.dispatchEvent(new MessageEvent("message", { data: event.data }))
      })
    }
    async postMessage(data) {
      await this.started
      this.inside.dispatchEvent(new MessageEvent("message", { data }))
    }
    terminate() {}
  }
