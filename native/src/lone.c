#include "lone.h"

void bd_lone_served(struct bd_lone *lone, unsigned requests, enum bd_lone_kind kind,
                    uint64_t payload)
{
    if (requests != 1 || kind == BD_LONE_OTHER || payload > BD_LONE_SMALL) {
        *lone = (struct bd_lone){0};
        return;
    }
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

bool bd_lone_syncs_ahead(const struct bd_lone *lone)
{
    return lone->row == BD_LONE_ROW && lone->pairs == BD_LONE_PAIRS && lone->wrote;
}

uint64_t bd_lone_again_ns(uint64_t took_ns, uint64_t long_ns, uint64_t now_ns)
{
    return took_ns > long_ns ? now_ns + BD_LONE_PAUSE * took_ns : 0;
}
