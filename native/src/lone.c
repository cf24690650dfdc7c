#include "lone.h"

void bd_lone_served(struct bd_lone *lone, unsigned requests, enum bd_lone_kind kind,
                    uint64_t payload)
{
    bool is_single = requests == 1 && payload <= BD_LONE_SMALL;
    if (!is_single || kind == BD_LONE_OTHER || kind == BD_LONE_READ) {
        unsigned reads = is_single && kind == BD_LONE_READ ? lone->reads : 0;
        *lone = (struct bd_lone){.reads = reads};
        lone->reads += is_single && kind == BD_LONE_READ && reads < BD_LONE_ROW;
        return;
    }
    lone->reads = 0;
    lone->row += lone->row < BD_LONE_ROW;
    if (kind == BD_LONE_FLUSH && lone->wrote)
        lone->pairs += lone->pairs < BD_LONE_PAIRS;
    else if (kind == BD_LONE_FLUSH || lone->wrote)
        lone->pairs = 0;
    lone->wrote = kind == BD_LONE_WRITE;
}

void bd_lone_interrupted(struct bd_lone *lone)
{
    *lone = (struct bd_lone){0};
}

bool bd_lone_syncs_here(const struct bd_lone *lone)
{
    return lone->row == BD_LONE_ROW;
}

bool bd_lone_reads_here(const struct bd_lone *lone)
{
    return lone->reads == BD_LONE_ROW;
}

bool bd_lone_syncs_ahead(const struct bd_lone *lone)
{
    return lone->row == BD_LONE_ROW && lone->pairs == BD_LONE_PAIRS && lone->wrote;
}

uint64_t bd_lone_again_ns(uint64_t took_ns, uint64_t long_ns, uint64_t now_ns)
{
    return took_ns > long_ns ? now_ns + BD_LONE_PAUSE * took_ns : 0;
}
