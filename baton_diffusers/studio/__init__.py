"""The studio: a page on which a clip is planned, corrected, rendered and made anew in part. `baton studio` serves it.

`session.py` is what can be done, and knows no page; `shown.py` puts it into words and pictures; `page.py` is the page, by Gradio, which
the extra `app` brings.
"""
