"""What the browser tests look for on a page, as function bodies of JavaScript; each returns what is wrong, in words."""

__all__ = ["CLIPPED", "FAINT", "OUTSIDE", "OVERLAPPING", "SCROLLING_TABLES", "WHITE"]

_SHARED = """
  const visible = each => each.checkVisibility({visibilityProperty: true}) && each.getBoundingClientRect().width > 0;
  const told = each => (each.getAttribute('aria-label') || each.textContent || each.outerHTML).trim().slice(0, 60);
  const charts = Array.from(document.querySelectorAll('svg')).filter(each => visible(each) && !each.closest('.keys'));
"""

OUTSIDE = """
  const out = [];
  for (const each of document.querySelectorAll('body *')) {
    const box = each.getBoundingClientRect();
    const scrolls = each.closest('.scroll, .skip');
    const hidden = each.closest('thead') && getComputedStyle(each.closest('thead')).position === 'absolute';
    const beyond = box.right > innerWidth + 0.5 || box.left < -0.5;
    if ((!scrolls || scrolls === each) && box.width && beyond && !hidden && !each.matches('.skip'))
      out.push(each.outerHTML.slice(0, 90));
  }
  return {page: document.documentElement.scrollWidth, width: innerWidth, out};
"""

CLIPPED = (
    _SHARED
    + """
  const wrong = [];
  for (const each of document.querySelectorAll('body *')) {
    const style = getComputedStyle(each), box = each.getBoundingClientRect();
    if (!visible(each) || style.position === 'absolute' || each.closest('svg')) continue;
    const across = style.overflowX !== 'visible' && each.scrollWidth > each.clientWidth + 1;
    const down = style.overflowY === 'hidden' && each.scrollHeight > each.clientHeight + 1;
    const cue = each.nextElementSibling;
    const cued = each.matches('.scroll.more') && style.overflowX === 'auto' && cue && cue.matches('.cue') && visible(cue);
    if ((across && !cued) || down) wrong.push(`clipped: ${told(each)}`);
  }
  for (const row of document.querySelectorAll('table.wide tbody tr')) {
    const ends = line => Array.from(line.cells).filter(visible).map(cell => Math.round(cell.getBoundingClientRect().right));
    if (visible(row) && String(ends(row)) !== String(ends(row.closest('table').tHead.rows[0])))
      wrong.push(`cells are not below their headings: ${told(row)}`);
  }
  for (const chart of charts) {
    const whole = chart.getBoundingClientRect();
    if (whole.right > innerWidth + 0.5) wrong.push(`wider than the page: ${told(chart)}`);
    for (const part of chart.querySelectorAll('text, rect, image, .mark')) {
      const box = part.getBoundingClientRect();
      const across = box.left < whole.left - 1.5 || box.right > whole.right + 1.5;
      if (across || box.top < whole.top - 1.5 || box.bottom > whole.bottom + 1.5)
        wrong.push(`outside its chart: ${part.tagName} ${told(part)}`);
    }
  }
  return wrong;
"""
)

OVERLAPPING = (
    _SHARED
    + """
  const wrong = [];
  const ink = each => {  // letters fill the middle of their line; text that is read from below is upright
    const box = each.getBoundingClientRect(), turned = (each.getAttribute('transform') || '').includes('rotate');
    const [x, y] = turned ? [0.2 * box.width, 1] : [1, 0.2 * box.height];
    return {left: box.left + x, right: box.right - x, top: box.top + y, bottom: box.bottom - y};
  };
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
  for (const chart of charts) {
    const texts = Array.from(chart.querySelectorAll('text'), each => [each, ink(each)]);
    texts.forEach(([one, a], i) => texts.slice(0, i).forEach(([other, b]) => {
      if (meet(a, b)) wrong.push(`texts meet: ${told(one)} and ${told(other)}`);
    }));
    for (const mark of chart.querySelectorAll('.mark')) {
      const box = mark.getBoundingClientRect();
      const core = {left: box.left + 1, right: box.right - 1, top: box.top + 1, bottom: box.bottom - 1};
      for (const [text, a] of texts) if (meet(a, core)) wrong.push(`a text meets a mark: ${told(text)}`);
    }
  }
  return wrong;
"""
)

SCROLLING_TABLES = """
  return Array.from(document.querySelectorAll('.scroll'))
    .filter(each => each.querySelector('table') && !each.closest('details') && each.scrollWidth > each.clientWidth + 1)
    .map(each => each.getAttribute('aria-label'));
"""

WHITE = (
    _SHARED
    + """
  const shown = [...charts, ...document.querySelectorAll('.shot')];
  return shown.map(each => {
    const box = each.getBoundingClientRect();
    return {told: told(each), x: box.left + scrollX, y: box.top + scrollY, width: box.width, height: box.height};
  });
"""
)

FAINT = (
    _SHARED
    + r"""
  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const light = colour => colour.slice(0, 3).map(part => part / 255)
    .map(part => part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4)
    .reduce((sum, part, i) => sum + part * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = parts(getComputedStyle(document.body).backgroundColor);
  const wrong = [];
  for (const chart of charts) for (const text of chart.querySelectorAll('text')) {
    const box = text.getBoundingClientRect(), x = box.left + box.width / 2, y = box.top + box.height / 2;
    let behind = paper;
    for (const rect of text.parentElement.querySelectorAll('rect')) {
      const own = rect.getBoundingClientRect(), style = getComputedStyle(rect);
      if (own.left > x || own.right < x || own.top > y || own.bottom < y || style.fill === 'none') continue;
      behind = behind.map((part, i) => part + Number(style.fillOpacity) * (parts(style.fill)[i] - part));
    }
    const [one, other] = [light(parts(getComputedStyle(text).fill)), light(behind)].sort((a, b) => b - a);
    if ((one + 0.05) / (other + 0.05) < 4.5) wrong.push(`${told(text)}: ${((one + 0.05) / (other + 0.05)).toFixed(2)}`);
  }
  return wrong;
"""
)
