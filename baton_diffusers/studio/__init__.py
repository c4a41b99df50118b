"""The studio: a page on which a clip is planned, corrected, rendered and retaken. `baton studio` serves it.

`session.py` has the actions, and knows no page. `shown.py` puts their results into words and pictures. `page.py` is the page, made with
Gradio (the extra `app`).
"""
