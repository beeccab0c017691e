/** What is bought, by whom and from whom: the shapes that payments, orders, mails and pages share. */

export interface OrderLine {
  sku: string;
  quantity: number;
  /** Minor units, tax included. */
  unitPrice: number;
  name: string;
}
export interface Contact {
  email: string;
  name: string;
  phone?: string | undefined;
}
export interface ShipTo {
  postalCode?: string | undefined;
  address?: string | undefined;
}

/** A text of the shop's, in one language for everyone or in both. */
export type OwnText = string | { ja: string; en: string };

/** The seller, as mails and the last step before paying must name it. */
export interface Shop {
  name: OwnText;
  address?: OwnText | undefined;
  phone?: string | undefined;
  email?: string | undefined;
  /** Registration number of a qualified invoice issuer (適格請求書発行事業者). */
  invoiceNumber?: string | undefined;
}
/** What the last step before paying must show (特定商取引法 第十二条の六), beside items, total and period. */
export interface Terms {
  payment?: OwnText | undefined;
  delivery?: OwnText | undefined;
  cancellation?: OwnText | undefined;
  notes?: OwnText | undefined;
}

/** What pages and mails say of a sale; nothing that decides depends on it. */
export interface SaleDetails {
  shop?: Shop | undefined;
  terms?: Terms | undefined;
  /** Of items that name none, and of the shipping fee. */
  taxPercent: number;
}

export interface Item {
  sku: string;
  name: string;
  unitPrice: number;
  /** Whole percent, contained in the price. */
  taxPercent: number;
}

/** The lines of a reservation at the sale's prices: its view, the payment's snapshot, the amount and the order. */
export interface Cart {
  lines: OrderLine[];
  /** As the API shows them. */
  shown: Array<{ sku: string; quantity: number; unitPrice: number }>;
  /** Minor units, shipping fee and tax included. */
  amount: number;
}

/** A mail that local mode has received, for the page that shows it. */
export interface StoredMail {
  id: string;
  at: string;
  to: string;
  subject: string;
  text: string;
  html: string;
  messageId: string;
}
export interface MailReader {
  /** Newest first. */
  list(max?: number): Promise<StoredMail[]>;
  read(id: string): Promise<StoredMail | null>;
}
