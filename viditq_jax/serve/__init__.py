"""A page on this machine: a prompt, painted in floats and quantized, side by side (`viditq serve`).

studio.py    what is painted; knows nothing of the web
app.py       what comes over HTTP, which is not trusted; needs the extra `serve`
page.html    the page
"""
