# A plot on two logarithmic axes, as SVG, of lines "x series y".
function log10(number) { return log(number) / log(10) }
function at_x(x) { return 60 + (log10(x) - low_x) / (high_x - low_x) * 420 }
function at_y(y) { return 250 - (log10(y) - low_y) / (high_y - low_y) * 210 }
function floor(number) { return number >= 0 ? int(number) : -int(-number) - (int(number) != number) }
function short(exponent) { return exponent < 3 ? 10 ^ exponent : exponent < 6 ? 10 ^ (exponent - 3) "k" : 10 ^ (exponent - 6) "M" }
$3 > 0 {
  if (!count[$2]++) series[++kinds] = $2
  xs[$2, count[$2]] = $1; ys[$2, count[$2]] = $3
  if (kinds == 1 && count[$2] == 1) { low_x = high_x = log10($1); low_y = high_y = log10($3) }
  if (log10($1) < low_x) low_x = log10($1)
  if (log10($1) > high_x) high_x = log10($1)
  if (log10($3) < low_y) low_y = log10($3)
  if (log10($3) > high_y) high_y = log10($3)
}
END {
  low_y = floor(low_y); high_y = floor(high_y) + 1
  if (high_x == low_x) high_x = low_x + 1
  colour["theirs"] = "#c05020"; colour["ours"] = "#2060a0"
  label["theirs"] = "etcd's proxy"; label["ours"] = "etcd-proxy"
  print "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 620 290\" font-family=\"sans-serif\" font-size=\"12\">"
  print "<rect width=\"620\" height=\"290\" fill=\"white\"/>"
  printf "<text x=\"60\" y=\"22\" font-size=\"14\">%s (ns)</text>\n", title
  for (e = floor(low_x); e <= high_x; e++) if (e >= low_x) {
    printf "<line x1=\"%.1f\" y1=\"40\" x2=\"%.1f\" y2=\"250\" stroke=\"#ddd\"/>", at_x(10 ^ e), at_x(10 ^ e)
    printf "<text x=\"%.1f\" y=\"268\" text-anchor=\"middle\">%s</text>\n", at_x(10 ^ e), short(e)
  }
  for (e = low_y; e <= high_y; e++) {
    printf "<line x1=\"60\" y1=\"%.1f\" x2=\"480\" y2=\"%.1f\" stroke=\"#ddd\"/>", at_y(10 ^ e), at_y(10 ^ e)
    printf "<text x=\"54\" y=\"%.1f\" text-anchor=\"end\">%s</text>\n", at_y(10 ^ e) + 4, short(e)
  }
  for (k = 1; k <= kinds; k++) {
    name = series[k]; points = ""
    for (i = 1; i <= count[name]; i++) points = points sprintf("%.1f,%.1f ", at_x(xs[name, i]), at_y(ys[name, i]))
    printf "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"2\"/>", points, colour[name]
    printf "<text x=\"490\" y=\"%.1f\" fill=\"%s\">%s</text>\n", 60 + 20 * k, colour[name], label[name]
  }
  print "</svg>"
}
