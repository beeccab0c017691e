/** The sale that local mode opens at its first start, so that there is something to buy. */
import type { Service } from "../compose.ts";
import { createSale } from "../http/sale-changes.ts";

const DAY_MS = 86_400_000;
const DEMO_SALE = "demo";

export async function demoSale(service: Service): Promise<void> {
  if ((await service.ctx.sales.all()).length > 0) return;
  const now = Date.now();
  const item = (sku: string, name: string, unitPrice: number, stock: number) => ({ sku, name, unitPrice, stock });
  await createSale(service.ctx, {
    id: DEMO_SALE,
    name: "福袋 Demo Sale",
    currency: "JPY",
    holdMs: 600_000,
    maxUnitsPerCustomer: 2,
    shippingFee: 800,
    opensAt: new Date(now).toISOString(),
    closesAt: new Date(now + 365 * DAY_MS).toISOString(),
    shop: {
      name: { ja: "福袋デモ商店", en: "Lucky Bag Demo Shop" },
      address: { ja: "東京都千代田区千代田 1-1", en: "1-1 Chiyoda, Chiyoda-ku, Tokyo" },
      phone: "03-0000-0000",
      email: "shop@fukubukuro.example",
      invoiceNumber: "T1234567890123",
    },
    terms: {
      delivery: {
        ja: "ご注文の確定後、7 日以内に発送します。",
        en: "Shipped within 7 days after the order is placed.",
      },
      cancellation: {
        ja: "福袋の性質上、お客様のご都合による返品・交換はお受けできません。不良品は到着後 7 日以内にご連絡ください。送料当店負担で交換または返金いたします。",
        en: "Lucky bags cannot be returned or exchanged for a change of mind. If something is broken, tell us within 7 days of arrival: we exchange or refund it at our cost.",
      },
    },
    items: [
      item("bag-s", "福袋 小 Lucky bag S", 3_000, 50),
      item("bag-m", "福袋 中 Lucky bag M", 10_000, 100),
      item("bag-l", "福袋 大 Lucky bag L", 30_000, 10),
      { ...item("bag-tea", "お茶の福袋 Tea bag", 2_160, 80), taxPercent: 8 },
    ],
  });
}
