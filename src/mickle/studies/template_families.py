"""Page templates, one function per family: boilerplate, title and main text to a page's HTML.

The first eight are for tuning, the others for reporting; see ``templates``.
"""

# ruff: noqa: E501, E731 - a template reads best with one element of its page on one line

from __future__ import annotations

from mickle.studies.blocks import Body
from mickle.studies.template_phrases import Filler


def portal(f: Filler, title: str, body: Body) -> str:
    """News in HTML5 with meaningful tags."""
    junk = lambda: f'<aside class="inline-promo"><p>{f.headline()} <a href="/p">Read more...</a></p></aside>'
    return f"""<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><title>{title} - Daily Example</title>{f.script()}</head>
<body><header class="site-header"><a href="/" class="logo">Daily Example</a><nav><ul>{f.menu(f.number(5, 14))}</ul></nav></header>
{f.maybe(f'<div id="cookie-bar" role="dialog"><p>{f.cookies()}</p><button>Accept</button></div>')}
<main><nav class="breadcrumb"><a href="/">Home</a> &gt; <a href="/n">News</a></nav>
<article><p class="byline">By {f.author()}, {f.date()}</p><div class="share-bar">{f.share()}</div>
<div class="article-body">{f.between(body.html(), junk)}</div>
<div class="tags">Tags: {f.menu(4, '<a rel="tag" href="/{0}">{1}</a>')}</div></article>
<section class="related"><h2>Related articles</h2>{f.teasers(f.number(2, 5), '<article><h3><a href="/r">{0}</a></h3><p>{1}</p><a href="/r">{2}</a></article>')}</section>
{f.maybe(f'<section id="comments"><h2>Comments</h2>{f.comments(f.number(1, 8), "<div class=comment><b>{0}</b> <time>{1}</time><p>{2}</p></div>")}</section>')}
</main><aside class="sidebar"><h2>Most read</h2><ol>{f.links(f.number(4, 10))}</ol></aside>
<footer><ul>{f.footer("<li>{}</li>")}</ul></footer></body></html>"""


def weblog(f: Filler, title: str, body: Body) -> str:
    """A blog of the kind that WordPress makes, comments and widgets included."""
    junk = lambda: f'<div class="code-block adsbygoogle">{f.ad()}</div>'
    return f"""<!DOCTYPE html><html><head><title>{title} | A weblog</title>{f.script()}</head><body class="single single-post">
<div id="page" class="hfeed site"><div id="masthead"><h1 class="site-title"><a href="/">A weblog</a></h1><p class="site-description">Notes and thoughts</p>
<div id="navbar" class="main-navigation"><ul class="nav-menu">{f.menu(f.number(4, 9), '<li class="menu-item"><a href="/{0}">{1}</a></li>')}</ul></div></div>
<div id="primary" class="content-area"><div id="content" class="site-content"><div class="post hentry type-post">
<div class="entry-meta">Posted on <a href="/d">{f.date()}</a> by <a href="/a">{f.author()}</a> | {f.number(2, 40)} comments</div>
<div class="entry-content">{f.between(body.html(heading="<h3>{}</h3>"), junk, 0.1)}
<div class="sharedaddy sd-sharing-enabled"><h3>Share this:</h3><ul>{f.share("<li>{}</li>")}</ul></div>
<div id="jp-relatedposts"><h3>Related</h3>{f.teasers(3, '<div class="jp-post"><a href="/r">{0}</a><p>{1}</p></div>')}</div></div>
<div class="entry-utility">This entry was posted in {f.menu(3, '<a href="/{0}">{1}</a>')}. Bookmark the permalink.</div></div>
<div id="nav-below" class="navigation"><a rel="prev" href="/1">&larr; {f.headline()}</a> <a rel="next" href="/2">{f.headline()} &rarr;</a></div>
<div id="comments" class="comments-area"><h2>{f.number(2, 40)} thoughts on this</h2><ol class="commentlist">{f.comments(f.number(2, 12), '<li class="comment"><cite>{0}</cite> says: <a href="/c">{1}</a><p>{2}</p><a class="comment-reply-link" href="#">Reply</a></li>')}</ol>
<form id="commentform"><p>Your email address will not be published.</p><label>Name</label><input><textarea></textarea><button>Post comment</button></form></div>
</div></div><div id="secondary" class="widget-area">{"".join(f'<div class="widget"><h3>{h}</h3><ul>{f.links(f.number(3, 8))}</ul></div>' for h in ("Recent posts", "Archives", "Meta"))}</div>
<div id="colophon" class="site-info">{f.footer()}</div></div></body></html>"""


def thread(f: Filler, title: str, body: Body) -> str:
    """A forum: the main text is spread over posts, each beside its author's panel."""
    pieces = body.html(
        heading="<h3>{}</h3>",
        code="<div class=codebox><p>Code: <a href=#>Select all</a></p><pre><code>{}</code></pre></div>",
    )
    posts = []
    for start, content in f.turns(pieces, 1, 4):
        posts.append(
            f'<div class="post bg{start % 2}"><div class="postprofile"><a href="/u">{f.author()}</a><br>Posts: {f.number(1, 9000)}<br>Joined: {f.date()}</div>'
            f'<div class="postbody"><ul class="post-buttons"><li><a href="#">Quote</a></li><li><a href="#">Report</a></li></ul>'
            f'<p class="author">by {f.author()} » {f.date()}</p><div class="content">{content}</div>'
            f"{f.maybe(f'<div class=signature>{f.headline()}</div>', 0.3)}</div></div>"
        )
    return f"""<!DOCTYPE html><html><head><title>{title} - Board</title>{f.script()}</head><body id="phpbb"><div id="wrap">
<div class="headerbar"><div class="site-description"><p>A place to talk</p></div><form id="search"><input value="Search..."></form></div>
<div class="navbar"><ul class="linklist">{f.menu(f.number(5, 9))}</ul></div><div id="page-body">
<div class="action-bar"><a href="/reply">Post reply</a> <div class="pagination">{f.number(2, 90)} posts - Page <strong>1</strong> of 4 <a href="/2">2</a> <a href="/3">3</a> Next</div></div>
{"".join(posts)}<div class="action-bar"><a href="/reply">Post reply</a></div><p class="jumpbox-return"><a href="/f">Return to the board index</a></p>
<div class="stat-block"><h3>Who is online</h3><p>Users browsing this forum: {f.author()} and {f.number(1, 30)} guests</p></div></div>
<div id="page-footer"><ul>{f.menu(4)}</ul><div class="copyright">{f.footer()}</div></div></div></body></html>"""


def manual(f: Filler, title: str, body: Body) -> str:
    """Documentation of the kind that Sphinx makes."""
    pieces = body.html(
        heading='<h2>{}<a class="headerlink" href="#x" title="Permalink to this headline">¶</a></h2>',
        code='<div class="highlight-python notranslate"><div class="highlight"><pre><span></span>{}</pre></div></div>',
    )
    return f"""<!DOCTYPE html><html><head><title>{title} &mdash; Example 1.2 documentation</title>{f.script()}</head><body>
<div class="related" role="navigation"><h3>Navigation</h3><ul><li class="right"><a href="genindex.html">index</a></li><li><a href="n.html">next</a> |</li><li><a href="p.html">previous</a> |</li><li><a href="index.html">Example 1.2 documentation</a> &#187;</li></ul></div>
<div class="document"><div class="documentwrapper"><div class="bodywrapper"><div class="body" role="main"><div class="section">{chr(10).join(pieces)}</div></div></div></div>
<div class="sphinxsidebar" role="navigation"><div class="sphinxsidebarwrapper"><h3>Table of Contents</h3><ul>{f.links(f.number(3, 20), '<li><a class="reference internal" href="#{0}">{1}</a></li>')}</ul>
<h4>Previous topic</h4><p class="topless"><a href="p.html">{f.headline()}</a></p><h4>Next topic</h4><p><a href="n.html">{f.headline()}</a></p>
<div id="searchbox"><h3>Quick search</h3><form><input name="q"><input type="submit" value="Go"></form></div></div></div></div>
<div class="footer" role="contentinfo">&#169; Copyright 2020, {f.author()}. Last updated on {f.date()}. Created using Sphinx 4.1.</div></body></html>"""


def shop(f: Filler, title: str, body: Body) -> str:
    """A product's page: the main text is its description."""
    items = f.teasers(
        f.number(3, 8),
        '<div class="product-card"><a href="/p">{0}</a><span class="price">$19.99</span><button>Add to cart</button></div>',
    )
    return f"""<!DOCTYPE html><html><head><title>Buy {title} online</title>{f.script()}</head><body>
<div class="topbar"><a href="/login">Sign in</a> <a href="/cart">0 items in cart</a></div><div class="mega-menu"><ul>{f.menu(f.number(8, 18))}</ul></div>
<div class="breadcrumbs"><a href="/">Home</a> / <a href="/c">Garden</a> / <span>{title}</span></div>
<div class="container"><div class="product-gallery"><img src="a.jpg" alt="Picture of it"></div>
<div class="product-summary"><p class="price">$ {f.number(5, 500)}.00</p><p>In stock</p><select><option>Small</option><option>Large</option></select><button>Add to cart</button><a href="/w">Add to wishlist</a></div>
<div class="product-description">{chr(10).join(body.html())}</div>
<div class="reviews"><h2>Customer reviews</h2>{f.comments(f.number(1, 6), '<div class="review"><span>{0}</span><span>{1}</span><p>{2}</p><a href="#">Was this helpful?</a></div>')}</div>
<div class="upsell"><h2>Customers also bought</h2>{items}</div></div>
<div class="newsletter-signup"><h3>Join our newsletter</h3><p>Be the first to hear about offers.</p><input type="email"><button>Subscribe</button></div>
{f.maybe(f'<div class="cookie-consent">{f.cookies()} <a href="/c">OK</a></div>')}
<div class="footer-links"><ul>{f.menu(f.number(6, 12))}</ul>{f.footer("<p>{}</p>")}</div></body></html>"""


def wiki(f: Filler, title: str, body: Body) -> str:
    """An encyclopedia of the kind that MediaWiki makes."""
    pieces = body.html(
        heading='<h2><span class="mw-headline">{}</span><span class="mw-editsection">[<a href="/e">edit</a>]</span></h2>'
    )
    toc = f'<div id="toc" class="toc"><h2>Contents</h2><ul>{f.links(f.number(3, 8))}</ul></div>'
    pieces.insert(min(2, len(pieces)), f.maybe(toc, 0.7))
    return f"""<!DOCTYPE html><html><head><title>{title} - Wiki</title>{f.script()}</head><body class="mediawiki"><div id="mw-page-base"></div>
<div id="content" class="mw-body"><div id="siteNotice">{f.maybe(f.ad())}</div>
<div id="bodyContent"><div id="siteSub">From Wiki, the free collection</div><div id="jump-to-nav">Jump to: <a href="#n">navigation</a>, <a href="#s">search</a></div>
<div id="mw-content-text"><div class="mw-parser-output">{chr(10).join(pieces)}
<div class="navbox"><table><tr><th>Part of a series</th></tr><tr><td>{f.links(f.number(5, 15), '<a href="/{0}">{1}</a> · ')}</td></tr></table></div></div></div>
<div class="printfooter">Retrieved from "<a href="/x">https://wiki.example/x</a>"</div><div id="catlinks" class="catlinks">Categories: {f.menu(4, '<a href="/{0}">{1}</a>')}</div></div></div>
<div id="mw-navigation"><h2>Navigation menu</h2><div id="p-personal"><ul>{f.menu(5)}</ul></div><div id="mw-panel"><ul>{f.menu(f.number(6, 14))}</ul></div></div>
<div id="footer"><ul>{f.footer("<li>{}</li>")}</ul></div></body></html>"""


def tables(f: Filler, title: str, body: Body) -> str:
    """HTML 4 whose layout is a table; tags in capitals, many of them never closed."""
    pieces = body.html(paragraph="<P>{}", heading="<H2><FONT COLOR=navy>{}</FONT></H2>", code="<PRE>{}</PRE>")
    return f"""<!DOCTYPE HTML PUBLIC "-//W3C//DTD HTML 4.01 Transitional//EN"><HTML><HEAD><TITLE>{title}</TITLE>{f.script()}</HEAD>
<BODY BGCOLOR="#FFFFFF"><TABLE WIDTH="100%" BORDER=0><TR><TD COLSPAN=2 ALIGN=center BGCOLOR="#000080"><FONT COLOR=white SIZE=5>The Example Pages</FONT>
<TR><TD COLSPAN=2>[ {f.menu(f.number(4, 9), '<A HREF="{0}.htm">{1}</A> |')} ]
<TR><TD WIDTH=150 VALIGN=top BGCOLOR="#EEEEEE"><B>Contents</B><BR>{f.links(f.number(4, 12), '<A HREF="{0}.htm">{1}</A><BR>')}
{f.maybe(f"<P><FONT SIZE=1>{f.ad()}</FONT>")}
<TD VALIGN=top>{chr(10).join(pieces)}
<TR><TD COLSPAN=2 ALIGN=center><HR><FONT SIZE=1>{f.footer("{}<BR>")}You are visitor number {f.number(100, 99999)} since {f.date()}</FONT></TABLE></BODY></HTML>"""


def soup(f: Filler, title: str, body: Body) -> str:
    """Divs inside divs with names that a build tool made."""
    name = lambda: f"css-{f.number(10**6, 10**7):x}"
    depth = f.number(3, 9)
    pieces = body.html(
        paragraph=f'<div class="{name()}"><span>{{}}</span></div>'
        if f.number(0, 2) == 0
        else f'<p class="{name()}">{{}}</p>'
    )
    open_, close = "".join(f'<div class="{name()}">' for _ in range(depth)), "</div>" * depth
    cards = f.teasers(
        f.number(3, 7),
        f'<div class="{name()}"><a href="/c"><div>{{0}}</div></a><div>{{1}}</div><a href="/c">{{2}}</a></div>',
    )
    return f"""<!doctype html><html><head><title>{title}</title>{f.script()}</head><body><div id="root">{open_}
<div class="{name()}">{f.menu(f.number(5, 12), '<div><a href="/{0}">{1}</a></div>')}</div>
<div class="{name()}"><div>{f.author()}</div><div>{f.date()}</div><div>{f.number(2, 12)} min read</div><div>{f.share("<button>{}</button>")}</div></div>
<div class="{name()}"><div>{chr(10).join(pieces)}</div></div>
<div class="{name()}"><div>Recommended for you</div>{cards}</div>
<div class="{name()}">{f.footer("<div>{}</div>")}{f.menu(6, '<a href="/{0}">{1}</a>')}</div>{close}</div>
{f.maybe(f'<div class="{name()}"><div>{f.cookies()}</div><button>Accept all</button><button>Reject</button></div>')}</body></html>"""


def magazine(f: Filler, title: str, body: Body) -> str:
    """A magazine: one article in sections, with offers, cards and a paywall's line between them."""
    junk = lambda: f.random.choice(
        (
            f'<div class="nl-box"><h4>Our best stories in your inbox</h4><p>{f.headline()} every Friday.</p><button>Sign up</button></div>',
            f'<figure class="teaser-inline"><a href="/t"><figcaption>{f.headline()}</figcaption></a></figure>',
            f'<div class="m-billboard"><span>{f.ad()}</span></div>',
        )
    )
    return f"""<!DOCTYPE html><html lang="en"><head><title>{title} | Sample Magazine</title>{f.script()}</head><body>
<div class="m-top"><a href="#main">Skip to content</a><div class="m-brand">Sample Magazine</div><ul class="m-sections">{f.menu(f.number(6, 12))}</ul></div>
<main id="main"><article itemscope itemtype="https://schema.org/Article"><div class="m-kicker"><a href="/s">{f.one((("Life",), ("Society", "Long reads")))}</a></div>
<div class="m-credits"><span itemprop="author">{f.author()}</span> <time>{f.date()}</time> <span>{f.number(3, 20)} minutes</span></div>
<div itemprop="articleBody" class="m-text">{f.between(body.html(), junk, 0.2)}</div>
<div class="m-actions">{f.share("<button type=button>{}</button>")}</div></article>
<div class="m-rail"><h3>More from this section</h3>{f.teasers(f.number(3, 6), '<div class="m-card"><h4><a href="/m">{0}</a></h4><p>{1}</p><a href="/m">{2}</a></div>')}</div>
<div class="m-discussion"><h3>Join the conversation</h3>{f.comments(f.number(0, 6), '<div class="m-entry"><span>{0}</span><span>{1}</span><div>{2}</div></div>')}</div></main>
<div class="m-consent" role="alertdialog"><p>{f.cookies()}</p><button>Agree</button></div>
<div class="m-bottom">{f.menu(8, '<a href="/{0}">{1}</a>')}<small>{f.footer()}</small></div></body></html>"""


def diary(f: Filler, title: str, body: Body) -> str:
    """A personal blog whose sidebar comes first and whose paragraphs are lines apart by breaks."""
    breaks = f.number(0, 1)
    pieces = body.html(paragraph="{}<br /><br />" if breaks else "<p>{}</p>", heading="<h3>{}</h3>")
    return f"""<!DOCTYPE html><html><head><title>{title}: my diary</title>{f.script()}</head><body><div id="outer-wrapper">
<div id="left-col"><h2>About me</h2><p>I live by the sea and write about what I find. {f.headline()}.</p><h2>Blog archive</h2><ul>{f.links(f.number(5, 14), '<li><a href="/{0}.html">{1}</a> (3)</li>')}</ul>
<h2>Labels</h2>{f.menu(8, '<a href="/l/{0}">{1}</a>')}<h2>Followers</h2><div>{f.number(3, 300)} followers</div></div>
<div id="main-wrapper"><h2 class="date-header">{f.date()}</h2><div class="post-outer"><div class="post-body entry">{chr(10).join(pieces)}<div style="clear: both;"></div></div>
<div class="post-footer">Posted by {f.author()} at 9:{f.number(10, 59)} AM <span>{f.share()}</span></div>
<div class="post-feedback">{f.number(1, 9)} remarks: <dl>{f.comments(f.number(1, 6), "<dt>{0} said...</dt><dd>{2}</dd><dd><a href='#'>{1}</a></dd>")}</dl></div></div>
<div class="blog-pager"><a href="/n">Newer entry</a> <a href="/h">Start</a> <a href="/o">Older entry</a></div></div>
<div id="credits">{f.footer("{} | ")}</div></div></body></html>"""


def helpdesk(f: Filler, title: str, body: Body) -> str:
    """A help centre's article."""
    return f"""<!DOCTYPE html><html><head><title>{title} – Help</title>{f.script()}</head><body>
<header class="hc-top"><a href="/">Sample Help</a><nav>{f.menu(4, '<a href="/{0}">{1}</a>')}</nav></header>
<main role="main"><div class="hc-crumbs"><ol><li><a href="/">Sample Help</a></li><li><a href="/a">Getting started</a></li></ol><form role="search"><input type="search" placeholder="Search"></form></div>
<div class="hc-columns"><section class="hc-siblings"><h3>Articles in this section</h3><ul>{f.links(f.number(4, 10))}</ul></section>
<article class="hc-page"><header><div class="hc-who"><span>{f.author()}</span><span>Updated {f.date()}</span><button>Follow</button></div></header>
<section class="hc-info"><div class="hc-copy">{chr(10).join(body.html())}</div></section>
<footer><div class="hc-votes"><span>Was this article helpful?</span><button>Yes</button><button>No</button><small>{f.number(1, 20)} out of {f.number(20, 90)} found this helpful</small></div>
<div>Have more questions? <a href="/new">Submit a request</a></div></footer>
<div class="hc-more"><section><h3>Recently viewed</h3><ul>{f.links(3)}</ul></section><section><h3>Similar topics</h3><ul>{f.links(f.number(2, 5))}</ul></section></div></article></div></main>
<div class="hc-bottom">{f.footer("<div>{}</div>")}</div></body></html>"""


def board(f: Filler, title: str, body: Body) -> str:
    """A message board made of tables, one per message."""
    pieces = body.html(heading="<div><strong>{}</strong></div>", paragraph="{}<br><br>")
    messages = []
    for start, content in f.turns(pieces, 2, 5):
        messages.append(
            f'<table class="tborder" width="100%"><tr><td class="thead" colspan="2">#{start} {f.date()}</td></tr><tr><td class="alt2" width="175"><a href="/m">{f.author()}</a>'
            f"<div>Senior Member</div><div>Location: somewhere</div><div>Messages: {f.number(10, 9999)}</div></td>"
            f'<td class="alt1"><div id="msg_{start}">{content}</div></td></tr><tr><td class="alt2"></td><td class="alt1" align="right"><a href="#">Answer with quote</a></td></tr></table>'
        )
    return f"""<html><head><title>{title}</title>{f.script()}</head><body><table class="page" width="100%"><tr><td><a href="/"><img src="logo.gif" alt="Sample Board"></a></td><td align="right">Welcome, guest. <a href="/in">Sign in</a> or <a href="/up">become a member</a>.</td></tr></table>
<table class="vbmenu"><tr>{f.menu(f.number(5, 8), '<td><a href="/{0}">{1}</a></td>')}</tr></table>
{"".join(messages)}
<table class="tborder"><tr><td class="thead">Similar discussions</td></tr>{f.links(f.number(3, 6), '<tr><td><a href="/{0}">{1}</a></td><td>someone</td><td>4 answers</td></tr>')}</table>
<div class="smallfont" align="center">All times are GMT. The time now is 04:{f.number(10, 59)}.</div><div align="center">{f.footer("{}<br>")}</div></body></html>"""


def handbook(f: Filler, title: str, body: Body) -> str:
    """Documentation of the kind that MkDocs makes."""
    pieces = body.html(
        heading='<h2 id="s">{}<a class="hl" href="#s" title="Anchor">#</a></h2>',
        code='<div class="hi"><button title="Copy">Copy</button><pre><code>{}</code></pre></div>',
    )
    return f"""<!doctype html><html lang="en"><head><title>{title} - Sample Handbook</title>{f.script()}</head><body dir="ltr">
<header class="md-top"><nav><a href="/">Sample Handbook</a><div>{title}</div><label>Search</label><input type="text"><a href="https://git.example/x">sample/x <ul><li>{f.number(1, 900)} stars</li><li>{f.number(1, 90)} forks</li></ul></a></nav></header>
<div class="md-frame"><main class="md-main"><div class="md-grid">
<div class="md-side left"><nav><ul>{f.links(f.number(6, 25), '<li><a href="{0}/">{1}</a></li>')}</ul></nav></div>
<div class="md-side right"><nav><label>On this page</label><ul>{f.links(f.number(2, 9), '<li><a href="#{0}">{1}</a></li>')}</ul></nav></div>
<div class="md-content"><article class="md-inner"><a href="/edit" title="Edit this page">Edit</a>{chr(10).join(pieces)}
<hr><div class="md-source-date"><small>Last change: {f.date()}</small></div></article></div></div></main>
<footer><nav><a href="../p/">Previous {f.headline()}</a><a href="../n/">Next {f.headline()}</a></nav><div>{f.footer()}</div></footer></div></body></html>"""


def store(f: Filler, title: str, body: Body) -> str:
    """A store with tabs, ratings and rows of other goods."""
    goods = f.teasers(
        f.number(4, 9),
        '<li class="tile"><a href="/g"><img src="g.jpg" alt=""><span>{0}</span></a><em>EUR 12,50</em><a href="#">Put into basket</a></li>',
    )
    return f"""<!DOCTYPE html><html><head><title>{title} @ Sample Store</title>{f.script()}</head><body><header><div class="usp">Free delivery from 50 EUR | 30 days return | Hotline 0800 1234</div>
<div class="basket">Your basket is empty</div><nav class="cats"><ul>{f.menu(f.number(6, 16))}</ul></nav></header>
<div id="wrap"><ol class="trail"><li><a href="/">Start page</a></li><li><a href="/h">Household</a></li><li>{title}</li></ol>
<section class="detail-top"><div class="buybox"><strong>EUR {f.number(3, 900)},00</strong><small>incl. VAT plus shipping</small><label>Quantity</label><input value="1"><button>Put into basket</button></div></section>
<ul class="tabs"><li><a href="#d">Description</a></li><li><a href="#r">Ratings ({f.number(1, 60)})</a></li><li><a href="#q">Questions</a></li></ul>
<section id="d" class="tab-pane"><div class="long-text">{chr(10).join(body.html(heading="<h3>{}</h3>"))}</div></section>
<section id="r" class="tab-pane"><h3>What customers say</h3>{f.comments(f.number(1, 7), "<blockquote><p>{2}</p><cite>{0}, {1}</cite></blockquote>")}</section>
<section class="slider"><h3>{f.one((("Also:",), ("You may also like", "Last viewed")))}</h3><ul>{goods}</ul></section></div>
<footer class="legal"><ul>{f.menu(f.number(5, 10))}</ul>{f.footer("<p>{}</p>")}</footer><div class="gdpr"><p>{f.cookies()}</p><a href="#">Fine</a></div></body></html>"""


def homepage(f: Filler, title: str, body: Body) -> str:
    """A personal page of the nineties: centred, fonts, rules, nested tables, no end tags."""
    pieces = body.html(
        paragraph='<p><font face="Arial">{}</font>', heading='<center><font size="+2"><b>{}</b></font></center>'
    )
    return f"""<html><head><title>{title}</title></head><body background="stars.gif" text="#000000"><center><table border="5" cellpadding="8"><tr><td><marquee>Welcome to my page!!!</marquee></td></tr></table></center>
<center>{f.menu(f.number(3, 7), '<a href="{0}.html">[{1}]</a>')}</center><hr>
<table width="80%" align="center"><tr><td><table><tr><td>{chr(10).join(pieces)}</td></tr></table></td></tr></table>
<hr><center><a href="guestbook.html">Sign my guestbook</a> <a href="mailto:x@example.org">Mail me</a><br>This page was visited {f.number(10, 9999)} times<br>
<table border="1"><tr><td>[ <a href="/p">Previous</a> | <a href="/r">Random</a> | <a href="/n">Next</a> | <a href="/l">List sites</a> ]<br>This site belongs to the Sample Webring</td></tr></table>
<font size="1">{f.footer("{}<br>")}</font></center></body></html>"""


def agency(f: Filler, title: str, body: Body) -> str:
    """A public authority: languages, quick links, contacts, steps, feedback."""
    return f"""<!DOCTYPE html><html lang="en"><head><title>{title} | Agency</title>{f.script()}</head><body><div class="skip"><a href="#c">Go to content</a></div>
<div class="lang-switch"><a href="/de">Deutsch</a> <a href="/fr">Français</a> <a href="/pl">Polski</a></div><div class="banner"><img alt="Coat of arms" src="c.png"><span>Agency for Samples</span></div>
<div role="navigation" class="level1"><ul>{f.menu(f.number(5, 9), '<li><a href="/{0}">{1}</a><ul><li><a href="/s">Overview</a></li><li><a href="/t">Topics</a></li></ul></li>')}</ul></div>
<div class="row"><div class="col-3"><div class="quick"><h2>Quick links</h2><ul>{f.links(f.number(3, 8))}</ul></div><div class="vcard"><h2>Contact</h2><p>Agency for Samples<br>1 Example Street<br>Tel. 030 1234<br>Monday to Friday 9 to 12</p></div></div>
<div class="col-9" id="c"><div class="pathway">You are here: <a href="/">Start page</a> / <a href="/x">Topics</a></div>{f.maybe(f'<div class="notice-strip"><p>{f.cookies()}</p></div>')}
<div class="text-block">{chr(10).join(body.html())}</div>
<div class="docs-list"><h2>Downloads</h2><ul>{f.links(f.number(1, 4), '<li><a href="/{0}.pdf">{1} (PDF, 2 MB)</a></li>')}</ul></div>
<div class="rate-page"><p>Did you find what you were looking for?</p><form><input type="radio"> Yes <input type="radio"> No <button>Send</button></form></div>
<p class="stamp">Last modified: {f.date()}</p><a href="#top">Back to top</a></div></div>
<div class="base"><ul>{f.menu(6)}</ul>{f.footer("<p>{}</p>")}</div></body></html>"""
