  // The part of `Step` that leaves heads and neurons out; included in the class.

  // Query heads of a KV head that a row computes.
  int heads_of(const Private& own, int b, int h, int l) const {
    if (!skips_heads(b, l)) return group;
    int n = 0;
    for (int g = 0; g < group; g++) n += own.kept[b][(size_t)h * group + g];
    return n;
  }

  Input hidden_input(const Readout& from, int b) const { return Input{shadows[from.producer][b].data(), nullptr, nullptr, nullptr, nullptr}; }

  // Every thread chooses for itself: a few heads are scored faster than threads wait for each other.
  void choose_heads(int t, int l, Private& own) {
    for (int b = 0; b < batch; b++) {
      if (!skips_heads(b, l)) continue;
      const LayerUnits& u = *units(b, l);
      std::vector<char>& kept = own.kept[b];
      if (u.heads == GIVEN) {
        kept = u.given_heads;
      } else {
        const Input x = hidden_input(u.head_scores, b);
        float* scores = own.part.data();
        k.matvec(u.head_scores.weight, 0, u.head_scores.weight.panels, 1, &x, &scores);
        add_bias(scores, u.head_scores.bias, 0, z.query_heads);
        best_heads(scores, z.query_heads, u.head_pool, u.heads_kept, kept.data());
      }
      if (t) continue;
      if (a.heads_computed)
        for (char one : kept) (*a.heads_computed)[b] += one;
      if (a.unit_record) (*a.unit_record)[b].heads[l] = kept;
    }
  }

  // Calls with the first head and the head behind the last of each stretch of heads that a row computes.
  template <class Call>
  void stretches(const std::vector<char>& kept, Call call) {
    for (int h = 0; h < z.query_heads;) {
      if (!kept[h]) {
        h++;
        continue;
      }
      int end = h;
      while (end < z.query_heads && kept[end]) end++;
      call(h, end);
      h = end;
    }
  }

  // This thread's share of W_Q: of the heads that a row computes, or of all where a guess is made with it.
  void multiply_queries(int t, int l, Private& own, const std::vector<Input>& x, const std::vector<float*>& y) {
    const Layer& layer = m.layers[l];
    const int guessed = (int)x.size() > batch;
    std::vector<Input> all_x;
    std::vector<float*> all_y;
    for (int i = 0; i < (int)x.size(); i++)
      if (guessed || !skips_heads(i, l)) all_x.push_back(x[i]), all_y.push_back(y[i]);
    if (!all_x.empty()) multiply(t, layer.query, all_x, all_y, layer.query_bias);
    if (guessed) return;
    const int panels = z.head_dim / PANEL;
    for (int b = 0; b < batch; b++) {
      if (!skips_heads(b, l)) continue;
      int total = 0, before = 0;
      for (char one : own.kept[b]) total += one * panels;
      const int from = share(total, t, pool.size()), to = share(total, t + 1, pool.size());
      stretches(own.kept[b], [&](int h, int end) {
        const int n = (end - h) * panels, p0 = std::max(from - before, 0), p1 = std::min(to - before, n);
        if (p0 < p1) {
          k.matvec(layer.query, h * panels + p0, h * panels + p1, 1, &x[b], &y[b]);
          add_bias(y[b], layer.query_bias, (h * panels + p0) * PANEL, (h * panels + p1) * PANEL);
        }
        before += n;
      });
    }
  }

  // This thread's share of the output projection, reading the columns of the heads that a row computes.
  void multiply_outputs(int t, int l, Private& own, const std::vector<Input>& x) {
    const Layer& layer = m.layers[l];
    std::vector<Input> all_x;
    std::vector<float*> all_y;
    for (int b = 0; b < batch; b++)
      if (!skips_heads(b, l)) all_x.push_back(x[b]), all_y.push_back(attended[b].data());
    if (!all_x.empty()) multiply(t, layer.attention, all_x, all_y, layer.attention_bias);
    const int p0 = share(layer.attention.panels, t, pool.size()), p1 = share(layer.attention.panels, t + 1, pool.size());
    for (int b = 0; b < batch; b++) {
      if (!skips_heads(b, l)) continue;
      float *to = attended[b].data(), *part = own.part.data();
      std::fill(to + p0 * PANEL, to + p1 * PANEL, 0.f);
      stretches(own.kept[b], [&](int h, int end) {
        Matrix columns = layer.attention;
        columns.data += (size_t)h * z.head_dim * PANEL * (columns.format == F32 ? 4 : 2);
        columns.cols = (end - h) * z.head_dim;
        Input piece = x[b];
        piece.values += h * z.head_dim;
        k.matvec(columns, p0, p1, 1, &piece, &part);
        for (int i = p0 * PANEL; i < p1 * PANEL; i++) to[i] += part[i];
      });
      add_bias(to, layer.attention_bias, p0 * PANEL, std::min(p1 * PANEL, layer.attention.rows));
    }
  }

  // This thread's share of the hidden layer that later layers' units are foretold from.
  void foretell(int t, int l, const std::vector<Input>& x) {
    for (int b = 0; b < batch; b++) {
      if (!a.units[b] || !a.units[b]->producers[l].weight.panels) continue;
      const UnitProducer& p = a.units[b]->producers[l];
      float* out = shadows[l][b].data();
      const int p0 = share(p.weight.panels, t, pool.size()), p1 = share(p.weight.panels, t + 1, pool.size());
      k.matvec(p.weight, p0, p1, 1, &x[b], &out);
      add_bias(out, p.bias, p0 * PANEL, std::min(p1 * PANEL, p.weight.rows));
      k.gate(out + p0 * PANEL, nullptr, (p1 - p0) * PANEL, SILU);
    }
  }

  // This thread's chunks of a layer's neurons: which of them, then their other rows and their columns.
  void some_neurons(int t, int l, int b, Private& own, const Input& x) {
    const Layer& layer = m.layers[l];
    const LayerUnits& u = *units(b, l);
    const size_t element = layer.record_format == F32 ? 4 : 2, row = z.hidden * element, record = 3 * row;
    const char* part[3] = {layer.records, layer.records + row, layer.records + 2 * row};
    const int panels = layer.gate_up.panels / 2, other = u.first == GATE ? UP : GATE;
    k.arrange(x.values, layer.record_format, z.hidden, own.arranged.data());
    if (u.neurons == GATED && u.right.panels) {
      own.look.assign(u.left.cols, 0.f);
      float* look = own.look.data();
      k.matvec(u.right, 0, u.right.panels, 1, &x, &look);
      std::fill(own.look.begin() + u.right.rows, own.look.end(), 0.f);
    }
    int64_t total = 0;
    for (int c = share(CHUNKS, t, pool.size()); c < share(CHUNKS, t + 1, pool.size()); c++) {
      const int p0 = share(panels, c, CHUNKS), p1 = share(panels, c + 1, CHUNKS);
      const int from = p0 * PANEL, to = std::min(p1 * PANEL, z.intermediate);
      float* sum = chunk_sums.data() + ((size_t)b * CHUNKS + c) * row_width();
      std::fill_n(sum, row_width(), 0.f);
      const int32_t* active = own.active.data();
      int n = 0;
      if (u.neurons == GIVEN) {
        active = std::lower_bound(u.given_neurons.data(), u.given_neurons.data() + u.given_neurons.size(), from);
        n = (int)(std::lower_bound(active, u.given_neurons.data() + u.given_neurons.size(), to) - active);
      } else if (u.neurons == FORETOLD) {
        const Input hidden = hidden_input(u.neuron_scores, b);
        float* scores = own.first.data();
        k.matvec(u.neuron_scores.weight, p0, p1, 1, &hidden, &scores);
        for (int j = from; j < to; j++)
          if (scores[j] + u.neuron_scores.bias[j] >= u.cut) own.active[n++] = j;
      } else {
        n = gated_neurons(layer, u, own, x, p0, p1);
      }
      float *gate = own.guess.data(), *up = own.other.data();
      auto multiplied = [&](int factor, float* out) {
        k.dot_rows(part[factor], layer.record_format, record, active, n, own.arranged.data(), z.hidden, out);
        for (int i = 0; layer.gate_up_bias && i < n; i++)
          out[i] += layer.gate_up_bias[(active[i] / PANEL * 2 + factor) * PANEL + active[i] % PANEL];
      };
      if (u.neurons == GATED) {
        float* found = other == GATE ? gate : up;
        multiplied(other, found);
        float* whole = other == GATE ? up : gate;
        for (int i = 0; i < n; i++) whole[i] = own.first[active[i]];
        // A gate that was computed whole is activated already.
        if (other == GATE) k.gate(gate, up, n, z.activation);
        else
          for (int i = 0; i < n; i++) gate[i] *= up[i];
      } else {
        multiplied(GATE, gate), multiplied(UP, up);
        k.gate(gate, up, n, z.activation);
      }
      k.add_rows(part[2], layer.record_format, record, active, n, gate, z.hidden, sum);
      total += n;
      if (a.unit_record) (*a.unit_record)[b].neurons[l][c].assign(active, active + n);
    }
    computed[b].fetch_add(total);
  }

  // Those neurons of panels p0 to p1 whose score reaches the cut; the factor that is computed whole stays in `own.first`.
  int gated_neurons(const Layer& layer, const LayerUnits& u, Private& own, const Input& x, int p0, int p1) {
    Matrix whole = layer.gate_up;  // every second panel
    whole.data += u.first * whole.panel_bytes;
    whole.panel_bytes *= 2, whole.panels /= 2;
    float *first = own.first.data(), *guess = own.guess.data(), *below = own.other.data();
    k.matvec(whole, p0, p1, 1, &x, &first);
    if (layer.gate_up_bias)
      for (int p = p0; p < p1; p++)
        for (int i = 0; i < PANEL; i++) first[p * PANEL + i] += layer.gate_up_bias[(2 * p + u.first) * PANEL + i];
    const int from = p0 * PANEL, to = std::min(p1 * PANEL, z.intermediate), count = (p1 - p0) * PANEL;
    if (u.first == GATE) k.gate(first + from, nullptr, count, z.activation);
    int n = 0;
    if (!u.left.panels) {
      for (int j = from; j < to; j++)
        if (std::fabs(first[j]) * u.scale[j] >= u.cut) own.active[n++] = j;
      return n;
    }
    const Input look{own.look.data(), nullptr, nullptr, nullptr, nullptr};
    k.matvec(u.left, p0, p1, 1, &look, &guess);
    for (int j = from; j < to; j++) {
      const float seen = guess[j];
      guess[j] = seen + u.spread[j], below[j] = seen - u.spread[j];
    }
    if (u.first == UP) k.gate(guess + from, nullptr, to - from, z.activation), k.gate(below + from, nullptr, to - from, z.activation);
    for (int j = from; j < to; j++) guess[j] = std::fabs(first[j]) * std::sqrt((guess[j] * guess[j] + below[j] * below[j]) * 0.5f) * u.scale[j];
    for (int j = from; j < to; j++)
      if (guess[j] >= u.cut) own.active[n++] = j;
    return n;
  }

  // What the chunks of a row add up to, in their order.
  const float* join_chunks(Private& own, int b, int l) {
    const Layer& layer = m.layers[l];
    const float* from = chunk_sums.data() + (size_t)b * CHUNKS * row_width();
    std::fill(own.arranged.begin(), own.arranged.end(), 0.f);
    for (int c = 0; c < CHUNKS; c++)
      for (size_t i = 0; i < row_width(); i++) own.arranged[i] += from[c * row_width() + i];
    k.restore(own.arranged.data(), layer.record_format, z.hidden, own.joined.data());
    add_bias(own.joined.data(), layer.down_bias, 0, z.hidden);
    return own.joined.data();
  }
